#include "worker/help_boards.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/shm/descriptor_socket.h"
#include "kernels/element_bytes.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<HelpBoards>> HelpBoards::Fetch(const Offer& offer, Ops* ops, Deadline deadline) {
  if (std::find(offer.workers.begin(), offer.workers.end(), offer.self) == offer.workers.end()) {
    return InvalidArgument("worker %d is none of those whose boards are offered", offer.self);
  }
  ASSIGN_OR_RETURN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket, offer.key, deadline));
  if (descriptors.size() != offer.workers.size()) {
    return InvalidArgument("%d boards were handed out, want %d", descriptors.size(), offer.workers.size());
  }
  std::map<int64_t, std::unique_ptr<HelpBoard>> boards;
  for (size_t i = 0; i < descriptors.size(); ++i) {
    const int64_t worker = offer.workers[i];
    if (worker < 0 || worker >= kMaxHelpers || boards.contains(worker)) {
      return InvalidArgument("a board is worker %d's, want each of 0 to %d once", worker, kMaxHelpers - 1);
    }
    ASSIGN_OR_RETURN(boards[worker], HelpBoard::Map(descriptors[i].Release(), offer.shape));
  }
  return std::make_unique<HelpBoards>(offer.self, std::move(boards), ops);
}

HelpBoards::~HelpBoards() {
  for (const std::span<const std::byte> region : pinned_) ops_.UnpinHost(region);
}

void HelpBoards::Pin() {
  const auto pin = [&](std::span<const std::byte> region, DType type) {
    const std::span<const std::byte> used = region.first(region.size() / sizeof(float) * ElementBytes(type));
    const absl::Status pinned = ops_.PinHost(used, /*read_only=*/false);
    if (pinned.ok()) pinned_.push_back(used);
    return pinned;
  };
  for (const auto& [worker, board] : boards_) {
    absl::Status pinned = pin(board->rows(), ops_.activation_dtype());
    pinned.Update(pin(board->contributions(), ops_.contribution_dtype()));
    if (!pinned.ok()) spdlog::warn("the help board of worker {} is not pinned, so help is slower: {}", worker, pinned.ToString());
  }
}

}  // namespace ferry
