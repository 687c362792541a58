#include "worker/help_boards.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/shm/descriptor_socket.h"
#include "kernels/element_bytes.h"

namespace ferry {
namespace {

constexpr size_t kRateBytes = size_t{32} << 20;  // copied to learn a rate

}  // namespace

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
  return std::make_unique<HelpBoards>(offer.self, std::move(boards), ops, PeerMemoriesOf(*ops));
}

HelpBoards::~HelpBoards() {
  for (const std::span<const std::byte> region : pinned_) ops_.UnpinHost(region);
}

void HelpBoards::Publish(const PeerMemory* own) {
  if (own != nullptr && static_cast<int64_t>(own->bytes().size()) >= DeviceBytes(this->own().shape(), ops_)) {
    own_memory_ = own->bytes();
    this->own().PublishMemory(std::as_bytes(std::span(own->key())));
  } else {
    this->own().PublishMemory({});
    PinBoard(self_);
  }
  for (const auto& [worker, board] : boards_) {
    if (worker != self_) board->Ring();
  }
}

void HelpBoards::Settle(std::span<std::byte> scratch) {
  for (const auto& [owner, board] : boards_) {
    if (owner == self_ || settled_.contains(owner)) continue;
    const std::optional<std::string> key = board->memory_key();
    if (!key) continue;
    settled_.insert(owner);
    if (key->empty()) {
      PinBoard(owner);
      continue;
    }
    if (const absl::Status mapped = Map(owner, *key, scratch); !mapped.ok()) {
      spdlog::info("this device does not reach that of worker {}, so rows go through the host's memory: {}", owner,
                   mapped.ToString());
      mapped_.erase(owner);
      PinBoard(owner);
      PinBoard(self_);  // that device will hardly reach this one
    }
  }
}

// The rate is measured of rows on their way here, the second time, since the first prepares the mapping.
absl::Status HelpBoards::Map(int64_t owner, const std::string& key, std::span<std::byte> scratch) {
  HelpBoard& board = *boards_.at(owner);
  const int64_t bytes = DeviceBytes(board.shape(), ops_);
  if (peers_ == nullptr) return FailedPrecondition("this device maps no memory of others");
  ASSIGN_OR_RETURN(mapped_[owner], peers_->Map(key, bytes));
  const size_t some = std::min({kRateBytes, scratch.size(), static_cast<size_t>(bytes)});
  const size_t times = std::clamp<size_t>(kRateBytes / some, 1, 64);  // a few bytes take no longer than a copy's start
  absl::Duration took;
  for (int round = 0; round < 2; ++round) {
    const Stopwatch copying;
    for (size_t i = 0; i < times; ++i) {
      RETURN_IF_ERROR(ops_.UploadAsync(scratch.data(), mapped_[owner]->bytes().first(some)));
    }
    ASSIGN_OR_RETURN(const Event copied, ops_.MarkCompute());
    RETURN_IF_ERROR(ops_.Wait(copied, Deadline::In(absl::Seconds(5))));
    took = copying.Elapsed();
  }
  const double rate = static_cast<double>(some * times) / std::max(absl::ToDoubleSeconds(took), 1e-9);
  spdlog::info("this device reaches that of worker {} at {:.1f} GB/s", owner, rate / 1e9);
  board.SetReach(self_, rate);
  return absl::OkStatus();
}

std::optional<HelpBoards::Memory> HelpBoards::OnDevice(int64_t owner) const {
  const auto mapped = mapped_.find(owner);
  std::span<std::byte> all;
  if (owner == self_) all = own_memory_;
  if (mapped != mapped_.end()) all = mapped->second->bytes();
  if (all.empty()) return std::nullopt;
  const HelpBoardShape& shape = own().shape();
  const auto rows = static_cast<size_t>(shape.row_bytes(ops_.activation_dtype()));
  return Memory{all.first(rows), all.subspan(rows, static_cast<size_t>(shape.contribution_bytes(ops_.contribution_dtype())))};
}

void HelpBoards::PinBoard(int64_t owner) {
  if (!boards_pinned_.insert(owner).second) return;
  const HelpBoard& board = *boards_.at(owner);
  const auto pin = [&](std::span<const std::byte> region, DType type) {
    const std::span<const std::byte> used = region.first(region.size() / sizeof(float) * ElementBytes(type));
    const absl::Status pinned = ops_.PinHost(used, /*read_only=*/false);
    if (pinned.ok()) pinned_.push_back(used);
    return pinned;
  };
  absl::Status pinned = pin(board.rows(), ops_.activation_dtype());
  pinned.Update(pin(board.contributions(), ops_.contribution_dtype()));
  if (!pinned.ok()) spdlog::warn("the help board of worker {} is not pinned, so help is slower: {}", owner, pinned.ToString());
}

}  // namespace ferry
