#pragma once

// The boards of one epoch (common/shm/help_board.h) as one worker has them: its own, and those of the workers that it may help.
//
// Rows and contributions of a worker's requests lie in its device's memory for helpers that reach it, else on its board. Each
// worker publishes its memory, and tries once to map that of every other.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/shm/help_board.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "kernels/peer_memory.h"

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
  // `peers`: how memory is mapped; null: none is.
  HelpBoards(int64_t self, std::map<int64_t, std::unique_ptr<HelpBoard>> boards, Ops* ops, PeerMemories* peers = nullptr)
      : self_(self), boards_(std::move(boards)), ops_(*ops), peers_(peers) {}
  ~HelpBoards();
  HelpBoards(const HelpBoards&) = delete;

  // Of the device memory that Publish takes.
  static int64_t DeviceBytes(const HelpBoardShape& shape, const Ops& ops) {
    return shape.row_bytes(ops.activation_dtype()) + shape.contribution_bytes(ops.contribution_dtype());
  }

  // Where rows and contributions of one worker's requests lie, as the devices of both workers address it.
  struct Memory {
    std::span<std::byte> rows, contributions;
  };

  // Before the first step: publishes `own`, DeviceBytes of this worker's device memory, which outlive the boards; null: there
  // are none.
  void Publish(const PeerMemory* own);
  // While this worker's device has nothing to do: maps what the others have published since, and pins the boards of those that
  // this device does not reach. What cannot be pinned is logged and copied slower. `scratch`: device memory that is overwritten.
  void Settle(std::span<std::byte> scratch);

  // The memory for a request of `owner` and this worker, its owner or its helper. Null: the two do not share device memory.
  std::optional<Memory> OnDevice(int64_t owner) const;
  Memory OnBoard(int64_t owner) const { return {boards_.at(owner)->rows(), boards_.at(owner)->contributions()}; }

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
  void PinBoard(int64_t owner);
  absl::Status Map(int64_t owner, const std::string& key, std::span<std::byte> scratch);

  const int64_t self_;
  const std::map<int64_t, std::unique_ptr<HelpBoard>> boards_;
  Ops& ops_;
  PeerMemories* const peers_;
  uint32_t heard_ = 0;
  std::set<int64_t> settled_;  // the others whose memory is mapped or will not be
  std::vector<std::span<const std::byte>> pinned_;
  std::set<int64_t> boards_pinned_;  // or tried
  std::span<std::byte> own_memory_;
  std::map<int64_t, std::unique_ptr<PeerMemory>> mapped_;  // by owner
};

}  // namespace ferry
