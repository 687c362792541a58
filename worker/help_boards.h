#pragma once

// The boards of one epoch (common/shm/help_board.h) as one worker has them: its own, and those of the workers that it may help.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/shm/help_board.h"
#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// One thread, but for Wake.
class HelpBoards {
 public:
  struct Offer {
    std::string socket, key;       // where the descriptors are fetched
    std::vector<int64_t> workers;  // whose boards they are, in order
    int64_t self = 0;              // this worker's id, one of them
    HelpBoardShape shape;
  };
  // InvalidArgument: an offer that contradicts itself, or boards of another shape. Otherwise the errors of FetchDescriptors.
  // `ops` outlives the boards.
  static absl::StatusOr<std::unique_ptr<HelpBoards>> Fetch(const Offer& offer, Ops* ops, Deadline deadline);
  // The same of boards that are mapped already: boards[i] is that of worker i.
  HelpBoards(int64_t self, std::map<int64_t, std::unique_ptr<HelpBoard>> boards, Ops* ops)
      : self_(self), boards_(std::move(boards)), ops_(*ops) {}
  ~HelpBoards();
  HelpBoards(const HelpBoards&) = delete;

  // Pins the memory that devices copy from and to; what cannot be pinned is logged and copied slower.
  void Pin();

  int64_t self() const { return self_; }
  HelpBoard& own() const { return *boards_.at(self_); }
  // By the id of its owner: all, the own one too.
  const std::map<int64_t, std::unique_ptr<HelpBoard>>& boards() const { return boards_; }

  // Whether the own bell has rung since the last Hear.
  bool Called() const { return own().bell() != heard_; }
  void Hear() { heard_ = own().bell(); }
  // Ends a sleep of this worker's thread on its own bell. Any thread.
  void Wake() { own().Ring(); }

 private:
  const int64_t self_;
  const std::map<int64_t, std::unique_ptr<HelpBoard>> boards_;
  Ops& ops_;
  uint32_t heard_ = 0;
  std::vector<std::span<const std::byte>> pinned_;
};

}  // namespace ferry
