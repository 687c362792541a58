#include "worker/expert_forward.h"

#include <algorithm>
#include <utility>

#include "common/deadline.h"
#include "common/expert_plan.h"
#include "kernels/element_bytes.h"
#include "worker/expert_answers.h"

namespace ferry {
namespace {

constexpr int64_t kMinSlotsToStream = 3;  // one computed, one arriving, one waiting
constexpr int64_t kMaxKept = 2;           // background copies at once: they share the host's memory rate with its experts

absl::Status CheckSlots(const ExpertForward::Options& options, int64_t num_slots) {
  const ExpertPolicy& policy = options.policy;
  if (policy.in_place || options.arena.num_records(options.first_layer, options.end_layer) == 0) return absl::OkStatus();
  if (policy.force != ExpertRule::kHost && !policy.ooae && num_slots < kMinSlotsToStream) {
    return FailedPrecondition(
        "--no-ooae ships every expert and needs at least %d expert slots, this worker has %d: give it --vram-experts of at "
        "least %d bytes",
        kMinSlotsToStream, num_slots,
        kMinSlotsToStream * ExpertCache::SlotBytes(options.arena, options.first_layer, options.end_layer));
  }
  const bool a_layer_ships = policy.force == ExpertRule::kDevice ||
                             std::find(policy.rules.begin(), policy.rules.end(), ExpertRule::kDevice) != policy.rules.end();
  if (a_layer_ships && num_slots < 1) {
    return FailedPrecondition(
        "this worker has to compute experts (-ot or --force-division=ship) and has no slots for them: give it --vram-experts");
  }
  return absl::OkStatus();
}

// Where the device reads a record that lies in the host's memory.
absl::StatusOr<const std::byte*> AddressInPlace(Ops& ops, const ExpertLink& link, ExpertId id) {
  ASSIGN_OR_RETURN(const std::span<const std::byte> record, link.RecordInPlace(id));
  return ops.AddressOfHost(record);
}

absl::Status CheckReach(Ops& ops, const ExpertLink& link, const ExpertForward::Options& options) {
  const int64_t layer = options.arena.NextWithExperts(options.first_layer, options.end_layer);
  if (!options.policy.in_place || layer == options.end_layer) return absl::OkStatus();
  const absl::Status reached = AddressInPlace(ops, link, {.layer = static_cast<int32_t>(layer), .expert = 0}).status();
  return reached.ok() ? reached : Annotate(reached, "experts cannot be computed where they lie (--unified off copies them)");
}

}  // namespace

ExpertForward::ExpertForward(Ops* ops, ExpertLink* link, ExpertCache* cache, const Options& options)
    : ops_(*ops), link_(*link), cache_(cache), options_(options), help_share_(ops) {
  if (cache == nullptr) return;
  const auto mode_of = [this](int64_t layer, int64_t rows) { return ModeOf(layer, rows); };
  copies_.emplace(Copies{PassCopies(cache), CopyAhead(cache, &options_.arena, options.first_layer, options.end_layer,
                                                      options.model.router.num_experts, mode_of)});
}

int64_t ExpertForward::BytesOf(const Ops& ops, const ModelConfig& model, int64_t max_rows) {
  return ExpertRouting::BytesOf(model.router, max_rows) +
         max_rows * model.router.top_k * model.n_embd * ElementBytes(ops.contribution_dtype()) +
         HostShare::BytesOf(ops, model.n_embd);
}

absl::StatusOr<std::unique_ptr<ExpertForward>> ExpertForward::Create(Ops* ops, ExpertLink* link, ExpertCache* cache,
                                                                     const Options& options) {
  RETURN_IF_ERROR(CheckSlots(options, cache == nullptr ? 0 : cache->num_slots()));
  RETURN_IF_ERROR(CheckReach(*ops, *link, options));
  std::unique_ptr<ExpertForward> forward(new ExpertForward(ops, link, cache, options));
  const ModelConfig& model = options.model;
  ASSIGN_OR_RETURN(forward->routing_, ExpertRouting::Create(ops, model.router, options.max_rows));
  ASSIGN_OR_RETURN(forward->contributions_,
                   ops->Allocate(options.max_rows * model.router.top_k * model.n_embd * ElementBytes(ops->contribution_dtype())));
  ASSIGN_OR_RETURN(forward->host_share_, HostShare::Create(ops, link, &forward->options_.arena, model.n_embd));
  return forward;
}

Tensor ExpertForward::Contributions() const {
  return {contributions_.data(), ops_.contribution_dtype(), routing_->rows() * options_.model.router.top_k,
          options_.model.n_embd};
}

Tensor ExpertForward::IdleContributions() const {
  return {contributions_.data(), ops_.contribution_dtype(), options_.max_rows * options_.model.router.top_k,
          options_.model.n_embd};
}

absl::Status ExpertForward::Forget(Deadline deadline) { return cache_ == nullptr ? absl::OkStatus() : cache_->Forget(deadline); }

absl::Status ExpertForward::BeginStep(const StepContext& context, int64_t rows) {
  since_last_layer_.reset();
  if (cache_ == nullptr) return absl::OkStatus();
  cache_->BeginStep(context.step, context.counters);
  cache_->BeginLayer(options_.first_layer);
  copies_->ahead.BeginStep(rows);
  return copies_->ahead.Start(context.deadline);
}

absl::StatusOr<bool> ExpertForward::CopyWhileWaiting(const StepContext& context) {
  if (cache_ == nullptr) return false;
  return copies_->ahead.CopyWhileWaiting(context.deadline);
}

absl::Status ExpertForward::Run(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, Tensor x) {
  if (in.rows == 0) return absl::OkStatus();
  const ExpertMode mode = ModeOf(layer, in.rows);
  RETURN_IF_ERROR(Route(context, layer, router, in, mode));
  ASSIGN_OR_RETURN(const std::vector<ExpertPlace> places, ChoosePlaces(context, layer, mode));
  const Shares shares = SharesOf(context, places);
  // First what the others wait for. The link still has this layer's copies that were begun ahead.
  RETURN_IF_ERROR(StartOthers(context, layer, in, shares));
  RETURN_IF_ERROR(LearnRouting(layer));
  RETURN_IF_ERROR(BeginCopies(context, layer, mode, shares.here));
  RETURN_IF_ERROR(mode == ExpertMode::kInPlace ? ComputeInPlace(context, layer, shares.here, in)
                                               : ComputeReady(context, layer, in));
  RETURN_IF_ERROR(host_share_->Finish(context, layer, Contributions()));
  RETURN_IF_ERROR(FinishHelp(context, layer, mode, in));
  RETURN_IF_ERROR(ops_.Combine(Contributions(), routing_->weights(), options_.model.router.top_k, x));
  return mode == ExpertMode::kResidentElseHost ? KeepTheHot(context, layer, shares.on_host) : absl::OkStatus();
}

void ExpertForward::Recover() {
  host_share_->Recover();
  help_share_.Recover();
  if (cache_ == nullptr) return;
  cache_->Recover();
  copies_->ahead.Recover();
  copies_->pass.Recover();
}

void ExpertForward::EndStep() {
  if (cache_ != nullptr) cache_->EndStep();
}

// ---------------------------------------------------------------------------------------------------------------- routing

absl::Status ExpertForward::Route(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in,
                                  ExpertMode mode) {
  const StepTrace::Scope span(*context.trace, "route", layer);
  RETURN_IF_ERROR(routing_->Queue(router, in));
  const bool host_likely = mode == ExpertMode::kHost || (mode == ExpertMode::kResidentElseHost && !cache_->HoldsAll());
  RETURN_IF_ERROR(host_share_->BeginLayer(in, host_likely));
  RETURN_IF_ERROR(routing_->Read(layer));  // the device is idle from here until its next operation is queued
  uses_.clear();
  for (int32_t expert = 0; expert < options_.model.router.num_experts; ++expert) {
    const int32_t tokens = routing_->tokens()[expert];
    if (tokens == 0) continue;
    const ExpertId id = IdOf(layer, expert);
    const bool has_slot = cache_ != nullptr && cache_->Contains(id);
    const uint32_t resident = !has_slot ? 0 : cache_->Arrived(id) ? 1 : kComing;
    uses_.push_back({.expert = expert, .tokens = tokens, .resident = resident});
  }
  return absl::OkStatus();
}

absl::Status ExpertForward::LearnRouting(int64_t layer) {
  if (cache_ == nullptr) return absl::OkStatus();
  cache_->BeginLayer(layer);
  RETURN_IF_ERROR(cache_->StartReadyCopies());
  for (const ActivatedExpert& use : uses_) cache_->AddHeat(IdOf(layer, use.expert));
  copies_->ahead.LearnRouting(layer, routing_->rows(), routing_->tokens());
  return absl::OkStatus();
}

uint32_t ExpertForward::Helpers() const {
  if (options_.policy.force != ExpertRule::kAny || routing_->rows() <= kMaxRowsWithoutPlan) return 0;
  return help_share_.Available(routing_->rows());
}

int ExpertForward::HelpersForNextLayer() {
  const absl::Duration layer_took = since_last_layer_ ? since_last_layer_->Elapsed() : absl::ZeroDuration();
  since_last_layer_.emplace();
  if (options_.policy.force != ExpertRule::kAny || routing_->rows() <= kMaxRowsWithoutPlan) return 0;
  return help_share_.NumAvailableWithin(layer_took, routing_->rows());
}

absl::StatusOr<std::vector<ExpertPlace>> ExpertForward::ChoosePlaces(const StepContext& context, int64_t layer, ExpertMode mode) {
  std::vector<ExpertPlace> places(uses_.size());
  switch (mode) {
    case ExpertMode::kHost:
      std::fill(places.begin(), places.end(), ExpertPlace::kHost);
      return places;
    case ExpertMode::kInPlace:
      std::fill(places.begin(), places.end(), ExpertPlace::kResident);
      return places;
    case ExpertMode::kShipActivated:
      if (Helpers() != 0) break;  // the planner knows of -ot, so it leaves nothing to the host
      [[fallthrough]];
    case ExpertMode::kShipAll:
      std::fill(places.begin(), places.end(), ExpertPlace::kShip);
      return places;
    case ExpertMode::kResidentElseHost:
      for (size_t i = 0; i < uses_.size(); ++i) {
        // The host computes an expert whose copy is still running.
        places[i] = cache_->Arrived(IdOf(layer, uses_[i].expert)) ? ExpertPlace::kResident : ExpertPlace::kHost;
      }
      return places;
    case ExpertMode::kPlanned:
      break;
  }
  if (std::all_of(uses_.begin(), uses_.end(), [](const ActivatedExpert& use) { return use.resident == 1; })) {
    std::fill(places.begin(), places.end(), ExpertPlace::kResident);  // no question to the planner
    return places;
  }
  const StepTrace::Scope span(*context.trace, "plan", layer);
  const uint32_t helpers = Helpers();
  ASSIGN_OR_RETURN(places, link_.Plan(context.step, layer, routing_->rows(), uses_, helpers, context.deadline));
  RETURN_IF_ERROR(CheckPlaces(places, uses_, helpers, layer));
  std::vector<ExpertPlace> copied = places;  // a helper's copies are as much worth as this link's
  std::replace_if(copied.begin(), copied.end(), IsHelper, ExpertPlace::kShip);
  copies_->ahead.LearnPlan(routing_->rows(), TokensWorthACopy(uses_, copied));
  return places;
}

ExpertForward::Shares ExpertForward::SharesOf(const StepContext& context, std::span<const ExpertPlace> places) const {
  Shares shares;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == ExpertPlace::kHost) {
      shares.on_host.push_back(uses_[i].expert);
    } else if (IsHelper(places[i])) {
      shares.helped[HelperOf(places[i])].push_back(uses_[i]);
    } else {
      shares.here.push_back(uses_[i]);
    }
  }
  context.counters->set_activated(context.counters->activated() + uses_.size());
  context.counters->set_on_host(context.counters->on_host() + shares.on_host.size());
  return shares;
}

// Helpers first: their devices need the rows sooner than the host's cores.
absl::Status ExpertForward::StartOthers(const StepContext& context, int64_t layer, Tensor in, const Shares& shares) {
  if (shares.on_host.empty() && shares.helped.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const HostGroups groups, routing_->ReadEntries(layer));
  RETURN_IF_ERROR(help_share_.Start(context, layer, in, shares.helped, groups));
  return shares.on_host.empty() ? absl::OkStatus() : host_share_->Start(context, layer, shares.on_host, groups);
}

absl::Status ExpertForward::FinishHelp(const StepContext& context, int64_t layer, ExpertMode mode, Tensor in) {
  ASSIGN_OR_RETURN(const std::vector<ActivatedExpert> left, help_share_.Finish(context, layer, Contributions()));
  if (left.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(BeginCopies(context, layer, mode, left));
  return ComputeReady(context, layer, in);
}

// ------------------------------------------------------------------------------------------------------- this device's share

absl::Status ExpertForward::BeginCopies(const StepContext& context, int64_t layer, ExpertMode mode,
                                        std::span<const ActivatedExpert> here) {
  if (cache_ == nullptr) return absl::OkStatus();
  copies_->ahead.EndLayer();
  copies_->pass.Begin(layer, here, routing_->tokens(), /*copy_unused=*/mode == ExpertMode::kShipAll);
  copies_->ahead.Plan(options_.arena.NextWithExperts(layer + 1, options_.end_layer), routing_->rows(), HelpersForNextLayer());
  RETURN_IF_ERROR(copies_->pass.Start(context.deadline).status());
  return cache_->StartReadyCopies();  // the last neighbours, which are copied together, too
}

// This layer's copies first, then the next layer's.
absl::Status ExpertForward::StartCopies(const StepContext& context) {
  ASSIGN_OR_RETURN(const bool all_asked_for, copies_->pass.Start(context.deadline));
  return all_asked_for ? copies_->ahead.Start(context.deadline) : absl::OkStatus();
}

absl::Status ExpertForward::ComputeReady(const StepContext& context, int64_t layer, Tensor in) {
  if (cache_ == nullptr) return absl::OkStatus();
  const StepTrace::Scope span(*context.trace, "experts here", layer);
  // Experts that are here are computed before the next layer's copies are started: hundreds of small ones keep this thread for
  // milliseconds, in which the device would stand still.
  while (!copies_->pass.done()) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ready, copies_->pass.NextReady(context.deadline));
    RETURN_IF_ERROR(ComputeTogether(context, layer, ready, in));
    RETURN_IF_ERROR(StartCopies(context));
    RETURN_IF_ERROR(host_share_->Continue(context, layer, Contributions()));
  }
  return StartCopies(context);
}

absl::Status ExpertForward::ComputeTogether(const StepContext& context, int64_t layer, std::span<const int32_t> experts,
                                            Tensor in) {
  if (experts.empty()) return absl::OkStatus();
  std::vector<ExpertUse> uses;
  for (const int32_t expert : experts) {
    ASSIGN_OR_RETURN(const std::byte* const record, cache_->Acquire(IdOf(layer, expert), context.deadline));
    uses.push_back({.record = record, .group = expert, .num_rows = routing_->tokens()[expert]});
  }
  RETURN_IF_ERROR(Compute(layer, uses, in));
  ASSIGN_OR_RETURN(const Event used, ops_.MarkCompute());
  for (const int32_t expert : experts) cache_->Release(IdOf(layer, expert), used);
  return absl::OkStatus();
}

absl::Status ExpertForward::ComputeInPlace(const StepContext& context, int64_t layer, std::span<const ActivatedExpert> here,
                                           Tensor in) {
  if (here.empty()) return absl::OkStatus();
  const StepTrace::Scope span(*context.trace, "experts in place", layer);
  std::vector<ExpertUse> uses;
  for (const ActivatedExpert& use : here) {
    ASSIGN_OR_RETURN(const std::byte* const record, AddressInPlace(ops_, link_, IdOf(layer, use.expert)));
    uses.push_back({.record = record, .group = use.expert, .num_rows = use.tokens});
  }
  context.counters->set_resident(context.counters->resident() + uses.size());
  return Compute(layer, uses, in);
}

absl::Status ExpertForward::Compute(int64_t layer, std::span<const ExpertUse> uses, Tensor in) {
  return ops_.ExpertMlp(options_.arena.layer(layer), uses, routing_->groups(), options_.model.expert.glu, in, Contributions());
}

// Admission to the cache in decode: an expert that the host just computed is copied when its heat exceeds the victim's by a whole
// use, so that two experts of about the same heat do not evict each other in turn.
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

}  // namespace ferry
