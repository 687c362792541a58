#pragma once

// Runs an automaton with its stack, byte by byte. Where several readings of the text are possible, it follows all.
//
// A configuration is a state of a rule and a frame: where its callers go on. Configurations that share a frame share
// everything below it (a graph-structured stack), and frames and sets of configurations are numbered by content: texts
// that may go on the same way are in the same Position, whose steps and masks are computed once.

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/automaton.h"

namespace ferry::constraint {

using Position = int32_t;  // numbers of one Pushdown; kNowhere: no text of the grammar begins so
using FrameId = int32_t;
inline constexpr Position kNowhere = -1;

// One thread at a time. Memory grows with the positions seen; see num_positions() and Forget().
class Pushdown {
 public:
  struct Configuration {
    StateId state;
    FrameId frame;
    auto operator<=>(const Configuration&) const = default;
  };

  explicit Pushdown(const Automaton* automaton);  // must outlive this

  Position start() const { return start_; }
  // Behind one more byte, or kNowhere.
  Position Advance(Position position, uint8_t byte);
  // The text so far is one of the grammar's.
  bool CanEnd(Position position) const { return positions_[position].can_end; }
  // Some byte may follow.
  bool CanGoOn(Position position) const { return !positions_[position].configurations.empty(); }
  const std::vector<Configuration>& Configurations(Position position) const { return positions_[position].configurations; }
  // Where the text may be when `state` ends here or calls a rule: without the steps by bytes of its own. A position that
  // cannot go on when there is nothing.
  Position Leave(Configuration configuration);

  const Automaton& automaton() const { return automaton_; }
  size_t num_positions() const { return positions_.size(); }
  // An ambiguous grammar had more readings at once, more positions since Forget, or more of both since StartWork than the bounds
  // allow: some were dropped, and with them texts that the grammar has.
  bool overflowed() const { return overflowed_; }
  // From here on the bound on work counts anew.
  void StartWork() { work_ = 0; }
  // Forgets everything but `position`; its new number.
  Position Forget(Position position);

 private:
  struct PositionData {
    std::vector<Configuration> configurations;  // with bytes to read; ascending
    bool can_end = false;
    std::vector<Position> next;  // [classes]; kUnknown: not computed
  };
  struct Hash {
    size_t operator()(const std::vector<Configuration>& list) const;
  };
  using Frame = std::vector<Configuration>;  // where callers go on, ascending

  Position Close(std::vector<Configuration> kernel, const Configuration* left_behind);
  FrameId Intern(Frame frame);
  Position Intern(std::vector<Configuration> configurations, bool can_end);
  void Reset();

  const Automaton& automaton_;
  std::vector<PositionData> positions_;
  std::unordered_map<std::vector<Configuration>, Position, Hash> position_ids_[2];  // by can_end
  std::vector<Frame> frames_;
  std::unordered_map<Frame, FrameId, Hash> frame_ids_;
  std::unordered_map<uint64_t, Position> leaves_;
  Position start_ = 0;
  int64_t work_ = 0;  // configurations and frames that were looked at
  bool overflowed_ = false;
};

}  // namespace ferry::constraint
