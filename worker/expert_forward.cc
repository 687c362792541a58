#include "worker/expert_forward.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/time/clock.h"
#include "common/expert_plan.h"
#include "common/log.h"
#include "kernels/element_bytes.h"
#include "worker/expert_answers.h"

namespace ferry {
namespace {

constexpr int64_t kGroupsAlign = 64;      // elements: each part of groups_ begins on 256 bytes
constexpr int64_t kMinSlotsToStream = 3;  // one computed, one arriving, one waiting
// Copies queued while rows are awaited: 3 ms of PCIe 5, since the engine's threads may keep this one from looking for as long.
constexpr int64_t kMaxWhileWaiting = 12;
constexpr int64_t kMaxKept = 2;  // background copies at once: they share the host's memory rate with its experts

int64_t AlignedUp(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

// Most tokens first; where neighbours can be copied at once, they stay together and count as the one of them with the most.
void OrderForCopies(std::vector<ActivatedExpert>& uses, bool keep_neighbours) {
  std::vector<std::pair<int32_t, ActivatedExpert>> keyed;  // tokens that decide, ids increasing
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    int32_t most = 0;
    do {
      most = std::max(most, uses[end].tokens);
      ++end;
    } while (keep_neighbours && end < uses.size() && uses[end].expert == uses[end - 1].expert + 1);
    for (size_t i = begin; i < end; ++i) keyed.emplace_back(most, uses[i]);
  }
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::transform(keyed.begin(), keyed.end(), uses.begin(), [](const auto& entry) { return entry.second; });
}

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

}  // namespace

Division DivisionFor(const ExpertPolicy& policy, LayerRule rule, bool has_slots, int64_t rows) {
  if (!has_slots || policy.force == ForceDivision::kHost || rule == LayerRule::kHost) return Division::kHost;
  if (!policy.ooae) return Division::kShipAll;
  if (policy.force == ForceDivision::kShip || rule == LayerRule::kDevice) return Division::kShipActivated;
  return rows <= kMaxRowsWithoutPlan ? Division::kResidentElseHost : Division::kPlanned;
}

int64_t ExpertForward::BytesOf(const Ops& ops, const ModelConfig& model, int64_t max_rows) {
  const int64_t entries = max_rows * model.router.top_k;
  return entries * 8 + (AlignedUp(model.router.num_experts + 1, kGroupsAlign) + 2 * AlignedUp(entries, kGroupsAlign)) * 4 +
         entries * model.n_embd * ElementBytes(ops.contribution_dtype()) + HostRows::BytesOf(ops, model.n_embd);
}

absl::StatusOr<std::unique_ptr<ExpertForward>> ExpertForward::Create(Ops* ops, ExpertLink* link, ExpertCache* cache,
                                                                     const Options& options) {
  const int64_t num_slots = cache == nullptr ? 0 : cache->num_slots();
  const ExpertPolicy& policy = options.policy;
  const bool has_experts = options.arena.num_records(options.first_layer, options.end_layer) > 0;
  if (has_experts && policy.force != ForceDivision::kHost && !policy.ooae && num_slots < kMinSlotsToStream) {
    return FailedPrecondition(
        "--no-ooae ships every expert and needs at least %d expert slots, this worker has %d: give it --vram-experts of at "
        "least %d bytes",
        kMinSlotsToStream, num_slots,
        kMinSlotsToStream * ExpertCache::SlotBytes(options.arena, options.first_layer, options.end_layer));
  }
  const bool a_layer_ships = policy.force == ForceDivision::kShip ||
                             std::find(policy.rules.begin(), policy.rules.end(), LayerRule::kDevice) != policy.rules.end();
  if (has_experts && a_layer_ships && num_slots < 1) {
    return FailedPrecondition(
        "experts are to be computed on this worker (-ot or --force-division=ship), which has no slots for "
        "them: give it --vram-experts");
  }
  std::unique_ptr<ExpertForward> forward(new ExpertForward(ops, link, cache, options));
  const int64_t entries = options.max_rows * options.model.router.top_k;
  ASSIGN_OR_RETURN(forward->chosen_, ops->Allocate(entries * sizeof(int32_t)));
  ASSIGN_OR_RETURN(forward->weights_, ops->Allocate(entries * sizeof(float)));
  ASSIGN_OR_RETURN(forward->groups_, ops->Allocate((AlignedUp(options.model.router.num_experts + 1, kGroupsAlign) +
                                                    2 * AlignedUp(entries, kGroupsAlign)) *
                                                   sizeof(int32_t)));
  ASSIGN_OR_RETURN(forward->contributions_,
                   ops->Allocate(entries * options.model.n_embd * ElementBytes(ops->contribution_dtype())));
  ASSIGN_OR_RETURN(forward->host_rows_, HostRows::Create(ops, options.model.n_embd));
  return forward;
}

LayerRule ExpertForward::RuleOf(int64_t layer) const {
  const size_t index = layer - options_.first_layer;
  return index < options_.policy.rules.size() ? options_.policy.rules[index] : LayerRule::kAny;
}

Tensor ExpertForward::Contributions() const {
  return {contributions_.data(), ops_.contribution_dtype(), routing_.rows * options_.model.router.top_k, options_.model.n_embd};
}

absl::Status ExpertForward::Forget(absl::Time deadline) {
  return cache_ == nullptr ? absl::OkStatus() : cache_->Forget(deadline);
}

absl::Status ExpertForward::BeginStep(const StepContext& context, int64_t rows) {
  if (cache_ == nullptr) return absl::OkStatus();
  cache_->BeginStep(context.step, context.counters);
  cache_->BeginLayer(options_.first_layer);
  PlanAhead(options_.arena.NextWithExperts(options_.first_layer, options_.end_layer), rows);
  waiting_ = {.rows = rows};
  return StartAhead(context);
}

absl::Status ExpertForward::Run(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, Tensor x) {
  if (in.rows == 0) return absl::OkStatus();
  const Division division = DivisionOf(layer, in.rows);
  RETURN_IF_ERROR(Route(context, layer, router, in, division));
  if (cache_ != nullptr) {
    cache_->BeginLayer(layer);
    RETURN_IF_ERROR(cache_->StartReadyCopies());
    for (const ActivatedExpert& use : routing_.uses) cache_->AddHeat(IdOf(layer, use.expert));
    copy_ahead_.Learn(layer, in.rows, routing_.tokens);
  }
  ASSIGN_OR_RETURN(const std::vector<ExpertPlace> places, Divide(context, layer, division));

  std::vector<int32_t> on_host;
  std::vector<ActivatedExpert> here;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == ExpertPlace::kHost) {
      on_host.push_back(routing_.uses[i].expert);
    } else {
      here.push_back(routing_.uses[i]);
    }
  }
  context.counters->set_activated(context.counters->activated() + routing_.uses.size());
  context.counters->set_on_host(context.counters->on_host() + on_host.size());

  // What is here already is held; what is not is wanted in order of tokens, so that the products that take longest hide the
  // copies behind them.
  wanted_.clear();
  next_wanted_ = 0;
  coming_.clear();
  if (cache_ != nullptr) {
    EndAhead();
    OrderForCopies(here, cache_->JoinsRecordsOf(layer));
    for (const ActivatedExpert& use : here) {
      if (cache_->Contains(IdOf(layer, use.expert))) {
        cache_->Pin(IdOf(layer, use.expert));
        coming_.push_back(use.expert);
      } else {
        wanted_.push_back(use.expert);
      }
    }
    if (division == Division::kShipAll) {
      for (int32_t expert = 0; expert < options_.model.router.num_experts; ++expert) {
        if (routing_.tokens[expert] == 0 && !cache_->Contains(IdOf(layer, expert))) wanted_.push_back(expert);
      }
    }
    PlanAhead(options_.arena.NextWithExperts(layer + 1, options_.end_layer), in.rows);
    RETURN_IF_ERROR(StartCopies(context, layer));
  }

  chunks_.clear();
  next_chunk_ = 0;
  if (!on_host.empty()) {
    RETURN_IF_ERROR(ReadEntries(layer));
    chunks_ = CutHostShare(on_host, routing_.host, link_.max_rows(), link_.max_entries());
  }
  RETURN_IF_ERROR(StartHost(context, layer, in));
  RETURN_IF_ERROR(ComputeHere(context, layer, in));
  RETURN_IF_ERROR(FinishHost(context, layer, in));
  RETURN_IF_ERROR(ops_.Combine(Contributions(), weights_.as<float>(), options_.model.router.top_k, x));
  if (division == Division::kResidentElseHost) RETURN_IF_ERROR(KeepTheHot(context, layer, on_host));
  return absl::OkStatus();
}

void ExpertForward::Recover() {
  if (host_running_) {
    // The mailbox takes the next request only after this one's answer.
    const auto late = link_.FinishCompute(absl::Now() + absl::Seconds(2));
    if (!late.ok()) spdlog::warn("the host's share of a failed step: {}", late.status().ToString());
    host_running_ = false;
  }
  if (cache_ != nullptr) cache_->Recover();
  ahead_ = {};
  waiting_ = {};
  coming_.clear();
}

void ExpertForward::EndStep() {
  if (cache_ != nullptr) cache_->EndStep();
}

// ---------------------------------------------------------------------------------------------------------------- routing

absl::Status ExpertForward::Route(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in,
                                  Division division) {
  const StepTrace::Scope span(*context.trace, "route", layer);
  const ModelConfig& model = options_.model;
  const int64_t entries = in.rows * model.router.top_k;
  const int64_t rows_begin = AlignedUp(model.router.num_experts + 1, kGroupsAlign);
  const int64_t outs_begin = rows_begin + AlignedUp(entries, kGroupsAlign);
  int32_t* const groups = groups_.as<int32_t>();
  RETURN_IF_ERROR(ops_.Route(in, router, model.router, chosen_.as<int32_t>(), weights_.as<float>()));
  RETURN_IF_ERROR(ops_.GroupByExpert(chosen_.as<int32_t>(), in.rows, model.router.top_k, model.router.num_experts, groups,
                                     groups + rows_begin, groups + outs_begin));
  routing_.rows = in.rows;
  routing_.device = {.num_groups = model.router.num_experts,
                     .num_entries = entries,
                     .offsets = groups,
                     .rows = groups + rows_begin,
                     .outs = groups + outs_begin};

  // The counts are needed to divide, and the device stands still until they are here. A small step's entries and rows come along:
  // the host computes a share of most such steps, and another way there and back costs more than the bytes.
  const bool host_likely = division == Division::kHost || (division == Division::kResidentElseHost && !cache_->HoldsAll());
  RETURN_IF_ERROR(host_rows_->Begin(in, host_likely));
  routing_.downloaded.resize(outs_begin + entries);
  const std::span<int32_t> offsets = std::span(routing_.downloaded).first(model.router.num_experts + 1);
  const std::span<int32_t> asked = routing_.small() ? std::span(routing_.downloaded) : offsets;
  RETURN_IF_ERROR(ops_.Download(std::as_writable_bytes(asked), groups));
  // Numbers read back from a device become indices here, so they are held to their ranges first.
  if (offsets.front() != 0 || offsets.back() != entries || !std::is_sorted(offsets.begin(), offsets.end())) {
    return Internal("routing of layer %d: offsets go from %d to %d, want increasing from 0 to %d", layer, offsets.front(),
                    offsets.back(), entries);
  }
  routing_.host = {.offsets = offsets, .rows = {}, .outs = {}};

  routing_.uses.clear();
  routing_.tokens.assign(model.router.num_experts, 0);
  for (int32_t expert = 0; expert < model.router.num_experts; ++expert) {
    const int32_t tokens = routing_.host.offsets[expert + 1] - routing_.host.offsets[expert];
    routing_.tokens[expert] = tokens;
    if (tokens == 0) continue;
    uint32_t resident = 0;
    if (cache_ != nullptr && cache_->Contains(IdOf(layer, expert))) resident = cache_->Arrived(IdOf(layer, expert)) ? 1 : kComing;
    routing_.uses.push_back({.expert = expert, .tokens = tokens, .resident = resident});
  }
  return absl::OkStatus();
}

// Which rows go to which expert, and where its contributions go: for the host's share.
absl::Status ExpertForward::ReadEntries(int64_t layer) {
  const int64_t entries = routing_.device.num_entries;
  const int64_t rows_begin = routing_.device.rows - routing_.device.offsets;
  const int64_t outs_begin = routing_.device.outs - routing_.device.offsets;
  const std::span<int32_t> both = std::span(routing_.downloaded).subspan(rows_begin, outs_begin - rows_begin + entries);
  if (!routing_.small()) RETURN_IF_ERROR(ops_.Download(std::as_writable_bytes(both), routing_.device.rows));
  const std::span<const int32_t> rows = both.first(entries), outs = both.last(entries);
  for (int64_t i = 0; i < entries; ++i) {
    if (rows[i] < 0 || rows[i] >= routing_.rows) {
      return Internal("routing of layer %d: row of entry %d is %d, want 0 to %d", layer, i, rows[i], routing_.rows - 1);
    }
    if (outs[i] < 0 || outs[i] >= entries) {
      return Internal("routing of layer %d: out of entry %d is %d, want 0 to %d", layer, i, outs[i], entries - 1);
    }
  }
  routing_.host.rows = rows;
  routing_.host.outs = outs;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ExpertPlace>> ExpertForward::Divide(const StepContext& context, int64_t layer, Division division) {
  const std::vector<ActivatedExpert>& uses = routing_.uses;
  std::vector<ExpertPlace> places(uses.size());
  switch (division) {
    case Division::kHost:
      std::fill(places.begin(), places.end(), ExpertPlace::kHost);
      return places;
    case Division::kShipActivated:
    case Division::kShipAll:
      std::fill(places.begin(), places.end(), ExpertPlace::kShip);
      return places;
    case Division::kResidentElseHost:
      for (size_t i = 0; i < uses.size(); ++i) {
        // One that is still on its way is computed on the host meanwhile.
        places[i] = cache_->Arrived(IdOf(layer, uses[i].expert)) ? ExpertPlace::kResident : ExpertPlace::kHost;
      }
      return places;
    case Division::kPlanned:
      break;
  }
  if (std::all_of(uses.begin(), uses.end(), [](const ActivatedExpert& use) { return use.resident == 1; })) {
    std::fill(places.begin(), places.end(), ExpertPlace::kResident);  // nothing to divide
    return places;
  }
  const StepTrace::Scope span(*context.trace, "plan", layer);
  ASSIGN_OR_RETURN(places, link_.Plan(context.step, layer, routing_.rows, uses, context.deadline));
  RETURN_IF_ERROR(CheckPlaces(places, uses, layer));
  copy_ahead_.LearnPlan(routing_.rows, TokensWorthACopy(uses, places));
  return places;
}

// -------------------------------------------------------------------------------------------------------- the host's share

absl::Status ExpertForward::StartHost(const StepContext& context, int64_t layer, Tensor in) {
  if (next_chunk_ == chunks_.size()) return absl::OkStatus();
  const StepTrace::Scope span(*context.trace, "rows to the host", layer);
  const HostChunk& chunk = chunks_[next_chunk_];
  RETURN_IF_ERROR(host_rows_->Read(in, chunk.rows, link_.HostRows(static_cast<int64_t>(chunk.rows.size()))));
  RETURN_IF_ERROR(link_.StartCompute({.step = context.step,
                                      .layer = static_cast<int32_t>(layer),
                                      .num_rows = static_cast<int32_t>(chunk.rows.size()),
                                      .uses = chunk.uses,
                                      .entry_rows = chunk.entry_rows}));
  host_running_ = true;
  context.counters->set_host_bytes_read(context.counters->host_bytes_read() +
                                        chunk.uses.size() * options_.arena.layer(layer).bytes);
  return absl::OkStatus();
}

absl::Status ExpertForward::FinishHost(const StepContext& context, int64_t layer, Tensor in) {
  for (; next_chunk_ < chunks_.size(); ++next_chunk_) {
    if (!host_running_) RETURN_IF_ERROR(StartHost(context, layer, in));
    const StepTrace::Scope span(*context.trace, "host's share", layer);
    const absl::Time before = absl::Now();
    const absl::StatusOr<std::span<const float>> contributions = link_.FinishCompute(context.deadline);
    host_running_ = false;
    RETURN_IF_ERROR(Annotate(contributions.status(), absl::StrFormat("experts of layer %d on the host", layer)));
    context.counters->set_host_wait_seconds(context.counters->host_wait_seconds() + SecondsSince(before));
    // The last ones may be read where they lie: the host writes there again when it is asked again, which the next layer does
    // behind a wait for its routing, and so for this.
    const bool last = next_chunk_ + 1 == chunks_.size();
    const std::vector<int32_t>& outs = chunks_[next_chunk_].outs;
    RETURN_IF_ERROR(last ? ops_.ScatterContributionsAsync(*contributions, outs, Contributions())
                         : ops_.ScatterContributions(*contributions, outs, Contributions()));
  }
  return absl::OkStatus();
}

// ------------------------------------------------------------------------------------------------------- this device's share

// As many of the wanted experts as slots allow, then the next layer's.
absl::Status ExpertForward::StartCopies(const StepContext& context, int64_t layer) {
  for (; next_wanted_ < wanted_.size(); ++next_wanted_) {
    const ExpertId id = IdOf(layer, wanted_[next_wanted_]);
    ASSIGN_OR_RETURN(const bool fetched, cache_->Fetch(id, ExpertCache::Purpose::kThisStep, context.deadline));
    if (!fetched) return cache_->StartReadyCopies();
    cache_->Pin(id);
    coming_.push_back(id.expert);
  }
  return StartAhead(context);
}

absl::Status ExpertForward::ComputeHere(const StepContext& context, int64_t layer, Tensor in) {
  if (cache_ == nullptr) return absl::OkStatus();
  const StepTrace::Scope span(*context.trace, "experts here", layer);
  std::vector<int32_t> ready;
  while (!coming_.empty() || next_wanted_ < wanted_.size()) {
    if (coming_.empty()) RETURN_IF_ERROR(cache_->WaitForRecord(context.deadline));  // slots wait for background copies
    // All that have arrived go together; if none has, compute waits for the first.
    ready.clear();
    std::erase_if(coming_, [&](int32_t expert) {
      const bool unused = routing_.tokens[expert] == 0;
      if (unused) cache_->Unpin(IdOf(layer, expert));
      const bool arrived = !unused && cache_->Arrived(IdOf(layer, expert));
      if (arrived) ready.push_back(expert);
      return unused || arrived;
    });
    if (ready.empty() && !coming_.empty()) {
      ready.push_back(coming_.front());
      coming_.pop_front();
    }
    RETURN_IF_ERROR(ComputeTogether(context, layer, ready, in));
    RETURN_IF_ERROR(StartCopies(context, layer));
  }
  return absl::OkStatus();
}

absl::Status ExpertForward::ComputeTogether(const StepContext& context, int64_t layer, std::span<const int32_t> experts,
                                            Tensor in) {
  if (experts.empty()) return absl::OkStatus();
  std::vector<ExpertUse> uses;
  for (const int32_t expert : experts) {
    ASSIGN_OR_RETURN(const std::byte* const record, cache_->Acquire(IdOf(layer, expert), context.deadline));
    uses.push_back({.record = record, .group = expert, .num_rows = routing_.tokens[expert]});
  }
  RETURN_IF_ERROR(
      ops_.ExpertMlp(options_.arena.layer(layer), uses, routing_.device, options_.model.expert.glu, in, Contributions()));
  ASSIGN_OR_RETURN(const Event used, ops_.MarkCompute());
  for (const int32_t expert : experts) cache_->Release(IdOf(layer, expert), used);
  return absl::OkStatus();
}

// Admission to the cache in decode: an expert that was just used moves in when it is worth a whole use more than what it pushes
// out, so that two experts of about the same heat do not chase each other over the link.
absl::Status ExpertForward::KeepTheHot(const StepContext& context, int64_t layer, std::span<const int32_t> on_host) {
  std::vector<int32_t> hottest(on_host.begin(), on_host.end());
  std::stable_sort(hottest.begin(), hottest.end(),
                   [&](int32_t a, int32_t b) { return cache_->Heat(IdOf(layer, a)) > cache_->Heat(IdOf(layer, b)); });
  RETURN_IF_ERROR(cache_->StartReadyCopies());
  for (const int32_t expert : hottest) {
    const std::optional<double> victim_heat = cache_->HeatOfVictim();
    if (!victim_heat || cache_->num_coming() >= kMaxKept || cache_->Heat(IdOf(layer, expert)) <= *victim_heat + 1) break;
    RETURN_IF_ERROR(cache_->Fetch(IdOf(layer, expert), ExpertCache::Purpose::kLaterSteps, context.deadline).status());
  }
  return cache_->StartReadyCopies();
}

// ---------------------------------------------------------------------------------------------------- the next layer's copies

void ExpertForward::PlanAhead(int64_t layer, int64_t rows) {
  ahead_ = {};
  if (layer >= options_.end_layer) return;
  ahead_.layer = layer;
  switch (DivisionOf(layer, rows)) {
    case Division::kHost:
    case Division::kResidentElseHost:
      break;
    case Division::kPlanned:
      ahead_.candidates = copy_ahead_.For(layer, rows, copy_ahead_.worth_tokens(rows));
      break;
    case Division::kShipActivated:
      ahead_.candidates = copy_ahead_.For(layer, rows, 0);
      break;
    case Division::kShipAll:
      ahead_.candidates.experts.resize(options_.model.router.num_experts);
      std::iota(ahead_.candidates.experts.begin(), ahead_.candidates.experts.end(), 0);
      ahead_.candidates.num_certain = options_.model.router.num_experts;
      break;
  }
  // All that is certain is copied, so neighbours may go together, unless there are too few slots for all of it.
  if (cache_->JoinsRecordsOf(layer) && ahead_.candidates.num_certain <= cache_->num_slots()) {
    std::sort(ahead_.candidates.experts.begin(), ahead_.candidates.experts.begin() + ahead_.candidates.num_certain);
  }
}

absl::Status ExpertForward::StartAhead(const StepContext& context) {
  for (; ahead_.next < ahead_.candidates.experts.size(); ++ahead_.next) {
    const bool certain = static_cast<int64_t>(ahead_.next) < ahead_.candidates.num_certain;
    if (!certain && static_cast<int64_t>(ahead_.speculative.size()) >= copy_ahead_.budget()) break;
    const int32_t expert = ahead_.candidates.experts[ahead_.next];
    const ExpertId id = IdOf(ahead_.layer, expert);
    const bool was_here = cache_->Contains(id);
    ASSIGN_OR_RETURN(const bool fetched, cache_->Fetch(id, ExpertCache::Purpose::kThisStep, context.deadline));
    if (!fetched) break;
    cache_->Pin(id);
    ahead_.pinned.push_back(expert);
    if (!certain && !was_here) ahead_.speculative.push_back(expert);
  }
  return cache_->StartReadyCopies();
}

// What is certain first, and of that what the last plan had copied; then the rest of what is certain, which the host would
// compute otherwise, and what is likely: the link has nothing else to do.
void ExpertForward::PlanWaiting() {
  waiting_.planned = true;
  const int64_t worth = copy_ahead_.worth_tokens(waiting_.rows);
  for (const auto& [min_tokens, certain] : {std::pair(worth, true), std::pair(int64_t{0}, true), std::pair(int64_t{0}, false)}) {
    for (int64_t layer = options_.first_layer; layer < options_.end_layer; ++layer) {
      if (!options_.arena.HasExperts(layer)) continue;
      const Division division = DivisionOf(layer, waiting_.rows);
      if (division == Division::kHost || division == Division::kResidentElseHost) continue;
      CopyAhead::Candidates candidates = copy_ahead_.For(layer, waiting_.rows, min_tokens);
      if (certain) candidates.experts.resize(candidates.num_certain);
      for (const int32_t expert : candidates.experts) waiting_.candidates.push_back(IdOf(layer, expert));
    }
  }
}

absl::StatusOr<bool> ExpertForward::CopyWhileWaiting(const StepContext& context) {
  if (cache_ == nullptr) return false;
  RETURN_IF_ERROR(cache_->StartReadyCopies());
  if (!waiting_.planned) PlanWaiting();
  for (; waiting_.next < waiting_.candidates.size(); ++waiting_.next) {
    if (cache_->num_coming() >= kMaxWhileWaiting) {
      RETURN_IF_ERROR(cache_->StartReadyCopies());
      return true;
    }
    const ExpertId id = waiting_.candidates[waiting_.next];
    if (cache_->Contains(id)) continue;
    // Not pinned: slots that are all held for later layers would leave none to the first. What is hotter stays.
    const std::optional<double> victim_heat = cache_->HeatOfVictim();
    if (!victim_heat || cache_->Heat(id) <= *victim_heat) continue;
    RETURN_IF_ERROR(cache_->Fetch(id, ExpertCache::Purpose::kThisStep, context.deadline).status());
  }
  RETURN_IF_ERROR(cache_->StartReadyCopies());
  return cache_->num_coming() > 0;
}

// The layer that was copied ahead for is routed: what it needs is pinned anew by whoever needs it.
void ExpertForward::EndAhead() {
  if (ahead_.layer < 0) return;
  int64_t arrived = 0;
  for (const int32_t expert : ahead_.speculative) arrived += cache_->Arrived(IdOf(ahead_.layer, expert));
  copy_ahead_.LearnGap(static_cast<int64_t>(ahead_.speculative.size()), arrived);
  for (const int32_t expert : ahead_.pinned) cache_->Unpin(IdOf(ahead_.layer, expert));
  ahead_ = {};
}

}  // namespace ferry
