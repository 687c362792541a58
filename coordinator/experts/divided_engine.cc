#include "coordinator/experts/divided_engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/deadline.h"

namespace ferry {
namespace {

// How long a host may take: far longer than its share, and short enough that a request outlives the host's death.
constexpr absl::Duration kEnginePatience = absl::Seconds(1);
constexpr double kPatienceOfPredicted = 20;
// For a host whose time passed while another one was waited for in vain: hosts that one switch joins go together.
constexpr absl::Duration kAfterAnother = absl::Milliseconds(100);

// The uses of `request` that `engines` gives to `engine`, with their entries. `outs` gets the entries' numbers in `request`.
ExpertRequest ShareOf(const ExpertRequest& request, std::span<const int32_t> engines, int32_t engine,
                      std::vector<int32_t>* outs) {
  ExpertRequest share = request;
  share.uses.clear();
  share.entry_rows.clear();
  outs->clear();
  int32_t entry = 0;
  for (size_t i = 0; i < request.uses.size(); ++i) {
    const int32_t end = entry + request.uses[i].tokens;
    if (engines[i] == engine) {
      share.uses.push_back(request.uses[i]);
      for (int32_t out = entry; out < end; ++out) {
        share.entry_rows.push_back(request.entry_rows[out]);
        outs->push_back(out);
      }
    }
    entry = end;
  }
  return share;
}

}  // namespace

struct DividedEngine::Share {
  std::shared_ptr<ExpertHost> host;
  std::shared_ptr<RemoteEngine> engine;
  std::unique_lock<std::mutex> exchange;  // of the host
  ExpertRequest request;
  std::vector<int32_t> outs;
  double predicted = 0;  // seconds of its computation
  Stopwatch since_start;
  absl::Status status;

  absl::Duration patience() const { return kEnginePatience + absl::Seconds(std::min(60.0, kPatienceOfPredicted * predicted)); }
};

absl::StatusOr<DivisionMode> ParseDivisionMode(const std::string& text) {
  if (text == "auto") return DivisionMode::kAuto;
  if (text == "even") return DivisionMode::kEven;
  if (text == "off") return DivisionMode::kOff;
  return InvalidArgument("'%s', want auto, even or off", text);
}

void DividedEngine::SetRates(const PlannerRates& host) {
  const std::lock_guard lock(mutex_);
  rates_ = host;
}

void DividedEngine::BeginStep(int64_t num_rows) {
  engine_.BeginStep(num_rows);
  for (const std::shared_ptr<ExpertHost>& host : hosts_.Connected()) host->BeginStep(num_rows);
}

std::vector<EnginePlace> DividedEngine::OtherPlaces(int64_t layer, int64_t num_rows) const {
  std::vector<EnginePlace> places;
  if (mode_ == DivisionMode::kOff) return places;
  for (const std::shared_ptr<ExpertHost>& host : hosts_.Connected()) {
    if (std::optional<EnginePlace> place = host->Place(layer, num_rows); place) places.push_back(*std::move(place));
  }
  return places;
}

absl::Status DividedEngine::Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) {
  if (mode_ == DivisionMode::kOff || hosts_.Connected().empty()) return engine_.Compute(request, rows, contributions);
  const int64_t n_embd = engine_.n_embd();
  const MailboxShape shape = {.n_embd = n_embd,
                              .max_rows = static_cast<int64_t>(rows.size()) / n_embd,
                              .max_entries = static_cast<int64_t>(contributions.size()) / n_embd,
                              .max_experts = store_.layout().num_experts()};
  if (request.kind != ExpertRequestKind::kCompute) return InvalidArgument("kind is not a computation");
  RETURN_IF_ERROR(CheckExpertRequest(request, shape, store_.layout().num_layers()));
  const MailboxShape& most = hosts_.shape();
  const bool too_large = request.num_rows > most.max_rows || static_cast<int64_t>(request.entry_rows.size()) > most.max_entries;
  return too_large ? engine_.Compute(request, rows, contributions) : ComputeDivided(request, rows, contributions);
}

absl::Status DividedEngine::ComputeDivided(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) {
  const std::lock_guard one(one_at_a_time_);
  std::vector<EnginePlace> others;
  std::vector<Share> shares;  // of the hosts that are free; another thread may be measuring an exchange with one
  for (const std::shared_ptr<ExpertHost>& host : hosts_.Connected()) {
    std::unique_lock exchange(host->exchange_mutex(), std::try_to_lock);
    if (!exchange.owns_lock()) continue;
    std::optional<EnginePlace> place = host->Place(request.layer, request.num_rows);
    std::shared_ptr<RemoteEngine> engine = host->engine();
    if (!place || engine == nullptr) continue;
    others.push_back(*std::move(place));
    shares.push_back({.host = host, .engine = std::move(engine), .exchange = std::move(exchange)});
  }
  const std::vector<int32_t> engines = Divide(request, others);
  for (size_t i = 0; i < shares.size(); ++i) {
    Share& share = shares[i];
    share.request = ShareOf(request, engines, static_cast<int32_t>(i) + 1, &share.outs);
    if (share.request.uses.empty()) continue;
    share.predicted = PredictedSeconds(others[i].rates, store_.layout().layer(request.layer), share.request.uses);
    Start(share, rows);
  }
  std::vector<int32_t> outs;
  const ExpertRequest own = ShareOf(request, engines, 0, &outs);
  absl::Status status;
  if (!own.uses.empty()) status = engine_.ComputeShare(own, outs, rows, contributions);
  const Stopwatch waiting;
  bool one_failed = false;
  for (Share& share : shares) {
    if (share.request.uses.empty()) continue;
    const absl::Duration left = share.patience() - waiting.Elapsed();
    Finish(share, one_failed ? std::max(left, kAfterAnother) : share.patience(), contributions);
    one_failed = one_failed || !share.status.ok();
    // The other end may have written some rows already: they are written again.
    if (!share.status.ok()) status.Update(engine_.ComputeShare(share.request, share.outs, rows, contributions));
  }
  return status;
}

std::vector<int32_t> DividedEngine::Divide(const ExpertRequest& request, const std::vector<EnginePlace>& others) const {
  std::vector<int32_t> engines(request.uses.size(), 0);
  if (others.empty()) return engines;
  if (mode_ == DivisionMode::kEven) {
    for (size_t i = 0; i < engines.size(); ++i) {
      const size_t turn = i % (others.size() + 1);
      if (turn == 0) continue;
      const EnginePlace& place = others[turn - 1];
      if (place.holds != nullptr && (*place.holds)[request.uses[i].expert]) engines[i] = static_cast<int32_t>(turn);
    }
    return engines;
  }
  const ExpertLayout& layout = store_.layout().layer(request.layer);
  PlannerInput input = {.uses = request.uses,
                        .bytes_per_expert = static_cast<double>(layout.bytes),
                        .flops_per_token = static_cast<double>(layout.flops_per_token()),
                        .num_rows = request.num_rows,
                        .others = others};
  {
    const std::lock_guard lock(mutex_);
    input.rates = rates_;
  }
  input.rates.host = Slower(input.rates.host, engine_.Slowdown(request.num_rows));
  ExpertPlan plan = PlanExperts(input);
  return plan.engines.empty() ? engines : std::move(plan.engines);
}

void DividedEngine::Start(Share& share, std::span<const float> rows) {
  share.since_start.Restart();
  share.status = share.engine->Start(share.request, rows, Deadline::In(kEnginePatience));
  if (!share.status.ok()) share.host->NoteFailure(share.status);
}

void DividedEngine::Finish(Share& share, absl::Duration patience, std::span<float> contributions) const {
  if (!share.status.ok()) return;
  const absl::StatusOr<RemoteAnswer> answer = share.engine->Finish(share.outs, contributions, Deadline::In(patience));
  share.status = answer.status();
  if (!answer.ok()) {
    share.host->NoteFailure(answer.status());
    return;
  }
  share.host->NoteExchange(share.request, store_.layout().layer(share.request.layer), share.since_start.Seconds(), *answer);
}

}  // namespace ferry
