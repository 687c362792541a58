#include "worker/help_share.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/log.h"
#include "kernels/element_bytes.h"

namespace ferry {
namespace {

// How long to wait for a helper after this device's share: both shares were planned to end together.
constexpr absl::Duration kPatience = absl::Seconds(1);
constexpr double kPatienceOfOwnShare = 4;

}  // namespace

void HelpShare::SetBoards(std::shared_ptr<HelpBoards> boards) {
  boards_ = std::move(boards);
  usable_ = boards_ != nullptr;
  running_.clear();
}

uint32_t HelpShare::Available(int64_t rows) const {
  if (!usable_) return 0;
  uint32_t helpers = 0;
  for (const auto& [worker, board] : boards_->boards()) {
    if (!board->available() || !Takes(worker, rows)) continue;
    helpers |= HelperBit(worker);
    if (OnDevice(worker)) helpers |= NearHelperBit(worker);
  }
  return helpers;
}

int HelpShare::NumAvailableWithin(absl::Duration time, int64_t rows) const {
  if (!usable_) return 0;
  return static_cast<int>(std::count_if(boards_->boards().begin(), boards_->boards().end(), [&](const auto& entry) {
    return Takes(entry.first, rows) && entry.second->AvailableWithin(time);
  }));
}

absl::Status HelpShare::Start(const StepContext& context, int64_t layer, Tensor in,
                              const std::map<int64_t, std::vector<ActivatedExpert>>& shares, const HostGroups& groups) {
  if (shares.empty()) return absl::OkStatus();
  const StepTrace::Scope span(*context.trace, "rows to helpers", layer);
  since_start_.Restart();
  HelpBoard& board = boards_->own();
  std::set<const std::byte*> filled;
  for (const auto& [helper, uses] : shares) {
    const std::span<std::byte> rows = MemoryOf(helper).rows;
    if (!filled.insert(rows.data()).second) continue;
    RETURN_IF_ERROR(ops_.DownloadAsync(rows.first(in.rows * in.cols * in.element_bytes()), in.data));
  }
  ASSIGN_OR_RETURN(const Event sent, ops_.MarkCompute());
  RETURN_IF_ERROR(ops_.Wait(sent, context.deadline));
  int64_t first_entry = 0;
  for (const auto& [helper, uses] : shares) {
    Running share = {.helper = helper, .contributions = MemoryOf(helper).contributions, .first_entry = first_entry, .uses = uses};
    HelpRequest request = {.row_type = in.dtype,
                           .contribution_type = ops_.contribution_dtype(),
                           .first_entry = first_entry,
                           .on_device = OnDevice(helper)};
    request.share.kind = ExpertRequestKind::kCompute;
    request.share.step = context.step;
    request.share.layer = static_cast<int32_t>(layer);
    request.share.num_rows = static_cast<int32_t>(in.rows);
    request.share.uses = uses;
    for (const ActivatedExpert& use : uses) {
      for (int32_t entry = groups.offsets[use.expert]; entry < groups.offsets[use.expert + 1]; ++entry) {
        request.share.entry_rows.push_back(groups.rows[entry]);
        share.outs.push_back(groups.outs[entry]);
      }
    }
    first_entry += static_cast<int64_t>(share.outs.size());
    RETURN_IF_ERROR(board.Post(helper, request));
    running_.push_back(std::move(share));
    boards_->boards().at(helper)->Ring();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ActivatedExpert>> HelpShare::Finish(const StepContext& context, int64_t layer, Tensor contributions) {
  std::vector<ActivatedExpert> left;
  if (running_.empty()) return left;
  const StepTrace::Scope span(*context.trace, "helpers' shares", layer);
  const Stopwatch waiting;
  const absl::Duration patience = kPatience + kPatienceOfOwnShare * since_start_.Elapsed();
  const Deadline deadline = std::min(context.deadline, Deadline::In(patience));
  const int64_t row_bytes = contributions.cols * contributions.element_bytes();
  for (const Running& share : std::exchange(running_, {})) {
    if (!WaitFor(share, deadline)) {
      left.insert(left.end(), share.uses.begin(), share.uses.end());
      continue;
    }
    const std::span<const std::byte> rows =
        share.contributions.subspan(share.first_entry * row_bytes, static_cast<int64_t>(share.outs.size()) * row_bytes);
    RETURN_IF_ERROR(ops_.ScatterComputedAsync(rows, share.outs, contributions));
    context.counters->set_shipped(context.counters->shipped() + share.uses.size());
  }
  context.counters->set_copy_wait_seconds(context.counters->copy_wait_seconds() + waiting.Seconds());
  std::sort(left.begin(), left.end(), [](const auto& a, const auto& b) { return a.expert < b.expert; });
  return left;
}

// Whether the helper has computed its share.
bool HelpShare::WaitFor(const Running& share, Deadline deadline) {
  HelpBoard& board = boards_->own();
  if (board.Withdraw(share.helper)) return false;
  const absl::Status answer = board.WaitForAnswer(share.helper, deadline);
  if (answer.ok()) return true;
  spdlog::warn("this worker computes a helper's share: {}", answer.ToString());
  if (absl::IsDeadlineExceeded(answer)) usable_ = false;
  return false;
}

void HelpShare::Recover() {
  for (const Running& share : std::exchange(running_, {})) {
    HelpBoard& board = boards_->own();
    if (!board.Withdraw(share.helper) &&
        absl::IsDeadlineExceeded(board.WaitForAnswer(share.helper, Deadline::In(absl::ZeroDuration())))) {
      usable_ = false;
    }
  }
}

}  // namespace ferry
