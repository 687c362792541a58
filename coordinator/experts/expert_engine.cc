#include "coordinator/experts/expert_engine.h"

#include <numeric>
#include <vector>

#include "absl/time/clock.h"

namespace ferry {

ExpertEngine::ExpertEngine(const ExpertStore* store, Ops* ops, const GluParams& glu, int64_t n_embd, TraceWriter* trace)
    : store_(*store), ops_(*ops), glu_(glu), n_embd_(n_embd), trace_(trace) {}

absl::Status ExpertEngine::Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) {
  std::vector<int32_t> outs(request.entry_rows.size());
  std::iota(outs.begin(), outs.end(), 0);
  return ComputeShare(request, outs, rows, contributions);
}

absl::Status ExpertEngine::ComputeShare(const ExpertRequest& request, std::span<const int32_t> outs, std::span<float> rows,
                                        std::span<float> contributions) {
  const ArenaLayout& arena = store_.layout();
  const int64_t num_entries = static_cast<int64_t>(request.entry_rows.size());
  if (request.kind != ExpertRequestKind::kCompute) return InvalidArgument("kind is not a computation");
  const MailboxShape shape = {.n_embd = n_embd_,
                              .max_rows = static_cast<int64_t>(rows.size()) / n_embd_,
                              .max_entries = static_cast<int64_t>(contributions.size()) / n_embd_,
                              .max_experts = arena.num_experts()};
  RETURN_IF_ERROR(CheckExpertRequest(request, shape, arena.num_layers()));
  if (static_cast<int64_t>(outs.size()) != num_entries) return InvalidArgument("%d outs, want %d", outs.size(), num_entries);
  for (const int32_t out : outs) {
    if (out < 0 || out >= shape.max_entries) return InvalidArgument("out is %d, want 0 to %d", out, shape.max_entries - 1);
  }

  // The entries are grouped by use already: groups are the uses.
  std::vector<ExpertUse> uses;
  std::vector<int32_t> offsets = {0};
  for (const ActivatedExpert& use : request.uses) {
    ASSIGN_OR_RETURN(const std::span<const std::byte> record, store_.Record(request.layer, use.expert));
    uses.push_back({.record = record.data(), .group = static_cast<int32_t>(uses.size()), .num_rows = use.tokens});
    offsets.push_back(offsets.back() + use.tokens);
  }
  const ExpertGroups groups = {.num_groups = static_cast<int64_t>(uses.size()),
                               .num_entries = num_entries,
                               .offsets = offsets.data(),
                               .rows = request.entry_rows.data(),
                               .outs = outs.data()};
  std::unique_lock lock(mutex_);
  const absl::Time begin = absl::Now();
  RETURN_IF_ERROR(ops_.ExpertMlp(arena.layer(request.layer), uses, groups, glu_,
                                 Tensor(rows.data(), DType::kF32, request.num_rows, n_embd_),
                                 Tensor(contributions.data(), DType::kF32, shape.max_entries, n_embd_)));
  const absl::Time end = absl::Now();
  if (trace_ != nullptr) trace_->AddEngine(request.layer, static_cast<int64_t>(uses.size()), num_entries, begin, end);
  lock.unlock();
  const std::lock_guard rates_lock(rates_mutex_);
  corrections_.Of(request.num_rows)
      .Add(PredictedSeconds(rates_, arena.layer(request.layer), request.uses), absl::ToDoubleSeconds(end - begin));
  return absl::OkStatus();
}

void ExpertEngine::SetRates(const ExpertRates& rates) {
  const std::lock_guard lock(rates_mutex_);
  rates_ = rates;
  corrections_ = StepCorrections();
}

void ExpertEngine::BeginStep(int64_t num_rows) {
  const std::lock_guard lock(rates_mutex_);
  corrections_.Of(num_rows).EndStep();
}

double ExpertEngine::Slowdown(int64_t num_rows) const {
  const std::lock_guard lock(rates_mutex_);
  return corrections_.Of(num_rows).factor();
}

StepCorrections::Factors ExpertEngine::corrections() const {
  const std::lock_guard lock(rates_mutex_);
  return corrections_.factors();
}

}  // namespace ferry
