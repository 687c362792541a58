#include "worker/help_service.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "common/log.h"
#include "kernels/element_bytes.h"
#include "worker/pass_copies.h"

namespace ferry {
namespace {

// For one share; its owner waits less.
constexpr absl::Duration kShareTime = absl::Seconds(10);

}  // namespace

absl::StatusOr<std::unique_ptr<HelpService>> HelpService::Create(Ops* ops, ExpertLink* link, const ModelConfig* model,
                                                                 const ArenaLayout* arena, int64_t num_slots,
                                                                 int64_t max_entries) {
  std::unique_ptr<HelpService> service(new HelpService(ops, model, arena));
  ASSIGN_OR_RETURN(service->cache_, ExpertCache::Create(ops, link, arena, 0, model->num_layers, num_slots));
  ASSIGN_OR_RETURN(service->memory_, ops->Allocate((arena->num_experts() + 1 + 2 * max_entries) * sizeof(int32_t)));
  service->max_entries_ = max_entries;
  return service;
}

void HelpService::Serve(HelpBoards& boards, const Buffers& buffers, StepTrace* trace) {
  boards.Hear();
  boards.Settle({static_cast<std::byte*>(buffers.in.data),
                 static_cast<size_t>(buffers.in.rows * buffers.in.cols * buffers.in.element_bytes())});
  const int64_t self = boards.self();
  for (const auto& [owner, board] : boards.boards()) {
    if (owner == self || !board->Posted(self)) continue;
    const absl::StatusOr<std::optional<HelpRequest>> request = board->Take(self, arena_.num_layers());
    if (!request.ok()) {
      spdlog::warn("refused a share of worker {}: {}", owner, request.status().ToString());
      continue;
    }
    if (!*request) continue;
    std::optional<StepTrace::Scope> span;
    if (trace != nullptr) span.emplace(*trace, "help another worker", (*request)->share.layer);
    const std::optional<HelpBoards::Memory> memory =
        (*request)->on_device ? boards.OnDevice(owner) : std::make_optional(boards.OnBoard(owner));
    const absl::Status computed =
        memory ? Compute(**request, *memory, buffers) : FailedPrecondition("this device does not reach that of its worker");
    if (!computed.ok()) {
      cache_->Recover();
      spdlog::warn("a share of worker {} failed: {}", owner, computed.ToString());
    }
    board->Answer(self, computed);
  }
}

absl::Status HelpService::Compute(const HelpRequest& request, const HelpBoards::Memory& memory, const Buffers& buffers) {
  const ExpertRequest& share = request.share;
  const auto num_entries = static_cast<int64_t>(share.entry_rows.size());
  if (!arena_.HasExperts(share.layer)) return InvalidArgument("layer %d has no experts", share.layer);
  if (request.row_type != ops_.activation_dtype() || request.contribution_type != ops_.contribution_dtype()) {
    return InvalidArgument("its worker computes in other number types than this one");
  }
  if (share.num_rows > buffers.in.rows || num_entries > std::min(max_entries_, buffers.contributions.rows)) {
    return InvalidArgument("%d rows and %d entries, want at most %d and %d", share.num_rows, num_entries, buffers.in.rows,
                           std::min(max_entries_, buffers.contributions.rows));
  }
  const Deadline deadline = Deadline::In(kShareTime);
  const Tensor in = buffers.in.Rows(0, share.num_rows), contributions = buffers.contributions.Rows(0, num_entries);
  // The rows before the records, behind which the link would bring them.
  RETURN_IF_ERROR(ops_.UploadAsync(in.data, memory.rows.first(in.rows * in.cols * in.element_bytes())));
  ASSIGN_OR_RETURN(const ExpertGroups groups, UploadGroups(share));
  cache_->BeginStep(++num_shares_, nullptr);
  cache_->BeginLayer(share.layer);
  for (const ActivatedExpert& use : share.uses) cache_->AddHeat({share.layer, use.expert});
  PassCopies copies(cache_.get());
  copies.Begin(share.layer, share.uses, tokens_, /*copy_unused=*/false);
  RETURN_IF_ERROR(copies.Start(deadline).status());
  RETURN_IF_ERROR(cache_->StartReadyCopies());
  while (!copies.done()) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ready, copies.NextReady(deadline));
    RETURN_IF_ERROR(ComputeTogether(request, ready, groups, in, contributions, memory.contributions));
    RETURN_IF_ERROR(copies.Start(deadline).status());
    RETURN_IF_ERROR(cache_->StartReadyCopies());
  }
  ASSIGN_OR_RETURN(const Event done, ops_.MarkCompute());
  RETURN_IF_ERROR(ops_.Wait(done, deadline));
  cache_->EndStep();
  num_computed_ += share.uses.size();
  return absl::OkStatus();
}

// Groups are numbered by use, and a contribution's row is its entry's number.
absl::StatusOr<ExpertGroups> HelpService::UploadGroups(const ExpertRequest& share) {
  tokens_.assign(arena_.num_experts(), 0);
  use_of_.assign(arena_.num_experts(), -1);
  offsets_.assign(1, 0);
  for (const ActivatedExpert& use : share.uses) {
    tokens_[use.expert] = use.tokens;
    use_of_[use.expert] = static_cast<int32_t>(offsets_.size()) - 1;
    offsets_.push_back(offsets_.back() + use.tokens);
  }
  std::vector<int32_t> outs(share.entry_rows.size());
  std::iota(outs.begin(), outs.end(), 0);
  int32_t* const offsets = memory_.as<int32_t>();
  int32_t* const rows = offsets + arena_.num_experts() + 1;
  RETURN_IF_ERROR(ops_.Upload(offsets, std::as_bytes(std::span(offsets_))));
  RETURN_IF_ERROR(ops_.Upload(rows, std::as_bytes(std::span(share.entry_rows))));
  RETURN_IF_ERROR(ops_.Upload(rows + max_entries_, std::as_bytes(std::span(outs))));
  return ExpertGroups{.num_groups = static_cast<int64_t>(share.uses.size()),
                      .num_entries = static_cast<int64_t>(outs.size()),
                      .offsets = offsets,
                      .rows = rows,
                      .outs = rows + max_entries_};
}

absl::Status HelpService::ComputeTogether(const HelpRequest& request, std::span<const int32_t> experts,
                                          const ExpertGroups& groups, Tensor in, Tensor contributions,
                                          std::span<std::byte> results) {
  if (experts.empty()) return absl::OkStatus();
  const int32_t layer = request.share.layer;
  std::vector<ExpertUse> uses;
  for (const int32_t expert : experts) {
    ASSIGN_OR_RETURN(const std::byte* const record, cache_->Acquire({layer, expert}, Deadline::In(kShareTime)));
    uses.push_back({.record = record, .group = use_of_[expert], .num_rows = tokens_[expert]});
  }
  RETURN_IF_ERROR(ops_.ExpertMlp(arena_.layer(layer), uses, groups, model_.expert.glu, in, contributions));
  ASSIGN_OR_RETURN(const Event used, ops_.MarkCompute());
  for (const int32_t expert : experts) cache_->Release({layer, expert}, used);
  // Results leave while later records come: the link has two directions.
  const int64_t row_bytes = contributions.cols * contributions.element_bytes();
  for (const int32_t expert : experts) {
    const int64_t first = offsets_[use_of_[expert]];
    RETURN_IF_ERROR(ops_.DownloadAsync(results.subspan((request.first_entry + first) * row_bytes, tokens_[expert] * row_bytes),
                                       contributions.Rows(first, tokens_[expert]).data));
  }
  return absl::OkStatus();
}

}  // namespace ferry
