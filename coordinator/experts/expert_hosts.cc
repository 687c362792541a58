#include "coordinator/experts/expert_hosts.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/escaped.h"
#include "common/log.h"

namespace ferry {
namespace {

constexpr size_t kMaxHosts = 64;
constexpr absl::Duration kTendPause = absl::Milliseconds(50);
constexpr absl::Duration kConnectTimeout = absl::Seconds(3), kMeasureTimeout = absl::Seconds(5);
constexpr absl::Duration kIdle = absl::Seconds(5);  // without work: what an exchange costs is measured again
constexpr absl::Duration kFirstRetry = absl::Seconds(1), kLongestRetry = absl::Seconds(60);
// Exchanges in a row that take longer than any correction says: the network is another one than was measured. A lost packet makes
// one exchange slow, not so many.
constexpr int kSlowExchanges = 5;
constexpr double kMovedSeconds = 5e-3;  // shorter ones may come of a busy core
constexpr double kMaxPeerRate = 1e15;   // bytes or operations a second: what a peer says is held to a range

absl::Status CheckRate(const char* field, double rate) {
  if (rate >= 0 && rate <= kMaxPeerRate) return absl::OkStatus();
  return InvalidArgument("%s is %g, want 0 to %g", field, rate, kMaxPeerRate);
}

}  // namespace

std::string KernelsOf(const std::string& engine_name) {
  const size_t open = engine_name.find('('), end = engine_name.find_first_of(",)");
  if (open == std::string::npos || end == std::string::npos || end < open) return engine_name;
  return engine_name.substr(open + 1, end - open - 1);
}

// --------------------------------------------------------------------------------------------------------------- one host

std::optional<EnginePlace> ExpertHost::Place(int64_t layer, int64_t num_rows) const {
  const std::lock_guard lock(mutex_);
  if (engine_ == nullptr) return std::nullopt;
  const double exchange = exchange_cost_.Of(num_rows).factor();
  EnginePlace place = {.rates = Slower(offer_.rates, computing_.Of(num_rows).factor()),
                       .exchange_seconds = exchange * cost_.exchange_seconds,
                       .row_seconds = exchange * cost_.row_seconds,
                       .memory = same_machine_ ? 0 : static_cast<int>(place_) + 1,
                       .memory_bytes_per_second = memory_bytes_per_second_,
                       .max_entries = shape_.max_entries,
                       .holds = offer_.holds[layer]};
  if (place.holds == nullptr) place.rates = {};  // none of this layer
  return place;
}

std::shared_ptr<RemoteEngine> ExpertHost::engine() const {
  const std::lock_guard lock(mutex_);
  return engine_;
}

std::string ExpertHost::Name() const {
  const std::lock_guard lock(mutex_);
  return absl::StrFormat("expert host %d (%s)", place_, Escaped(offer_.address));
}

void ExpertHost::NoteExchange(const ExpertRequest& share, const ExpertLayout& layout, double elapsed,
                              const RemoteAnswer& answer) {
  const auto entries = static_cast<int64_t>(share.entry_rows.size());
  const std::lock_guard lock(mutex_);
  ++exchanges_;
  entries_ += entries;
  if (since_connect_.Elapsed() > kLongestRetry) failures_in_a_row_ = 0;
  since_exchange_.Restart();
  computing_.Of(share.num_rows).Add(PredictedSeconds(offer_.rates, layout, share.uses), answer.computed_seconds);
  // As the planner counts: each row goes there at most once, every contribution comes back.
  const auto rows = static_cast<double>(std::min<int64_t>(share.num_rows, entries) + entries);
  const double predicted = cost_.exchange_seconds + rows * cost_.row_seconds;
  const double exchange = std::max(1e-6, elapsed - answer.computed_seconds);
  // Of an answer that lay there already, `elapsed` includes what this host did meanwhile: the exchange took no longer than that.
  if (answer.waited || exchange < predicted) exchange_cost_.Of(share.num_rows).Add(predicted, exchange);
  if (answer.waited) FollowNetwork(exchange, predicted);
}

// A correction has a bound, and a host with work is not measured: without this, plans would go on with a host that has moved from
// 0.2 ms to 100 ms away.
void ExpertHost::FollowNetwork(double exchange, double predicted) {
  if (exchange <= std::max(RateCorrection::kLargest * predicted, kMovedSeconds)) {
    slow_in_a_row_ = 0;
    return;
  }
  fastest_of_slow_ = slow_in_a_row_ == 0 ? exchange : std::min(fastest_of_slow_, exchange);
  if (++slow_in_a_row_ < kSlowExchanges) return;
  spdlog::warn("expert host {} at {}: an exchange takes {:.1f} ms now; {:.1f} ms were measured", place_, Escaped(offer_.address),
               fastest_of_slow_ * 1e3, cost_.exchange_seconds * 1e3);
  cost_.exchange_seconds = fastest_of_slow_;
  exchange_cost_ = StepCorrections(0);  // they corrected another cost
  slow_in_a_row_ = 0;
}

void ExpertHost::BeginStep(int64_t num_rows) {
  const std::lock_guard lock(mutex_);
  computing_.Of(num_rows).EndStep();
  exchange_cost_.Of(num_rows).EndStep();
}

void ExpertHost::NoteFailure(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  if (engine_ != nullptr) engine_->Cut();
  engine_ = nullptr;
  ++failures_;
  const absl::Duration pause = std::min(kLongestRetry, kFirstRetry * std::pow(2, std::min(failures_in_a_row_++, 10)));
  retry_at_ = Deadline::In(pause);
  last_failure_ = std::string(why.message());
  spdlog::warn("expert host {} at {} is left out for {}: {}", place_, Escaped(offer_.address), absl::FormatDuration(pause),
               Escaped(why.ToString()));
}

ExpertHost::Report ExpertHost::report() const {
  const std::lock_guard lock(mutex_);
  return {.offer = offer_,
          .state = engine_ != nullptr ? "connected"
                   : !offer_.ready    ? "loading"
                                      : "not connected",
          .cost = cost_,
          .row_bytes = static_cast<double>(shape_.n_embd * sizeof(float)),
          .computing = computing_.factors(),
          .exchange = exchange_cost_.factors(),
          .exchanges = exchanges_,
          .entries = entries_,
          .failures = failures_,
          .last_failure = last_failure_};
}

// --------------------------------------------------------------------------------------------------------------- all hosts

absl::StatusOr<std::unique_ptr<ExpertHosts>> ExpertHosts::Create(const Options& options) {
  std::unique_ptr<ExpertHosts> hosts(new ExpertHosts(options));
  ASSIGN_OR_RETURN(hosts->thread_, RepeatingThread::Start(kTendPause, [raw = hosts.get()] { raw->Tend(); }));
  return hosts;
}

ExpertHosts::~ExpertHosts() {
  for (const std::shared_ptr<ExpertHost>& host : All()) {
    if (const std::shared_ptr<RemoteEngine> engine = host->engine(); engine != nullptr) engine->Cut();
  }
  thread_ = nullptr;
}

absl::StatusOr<ExpertHosts::Answer> ExpertHosts::Offer(const ExpertHostOffer& offer) {
  if (offer.incarnation.value() == 0) return InvalidArgument("incarnation is 0, want a random number");
  if (offer.fingerprint != 0 && offer.fingerprint != options_.words.fingerprint) {
    return FailedPrecondition("this host has another model: its fingerprint is %016x, want %016x", offer.fingerprint,
                              options_.words.fingerprint);
  }
  if (offer.kernels != options_.kernels) {
    return FailedPrecondition(
        "this host computes with %s, the coordinator with %s, whose results differ in their last bits: start "
        "both with the same --isa",
        Escaped(offer.kernels), options_.kernels);
  }
  RETURN_IF_ERROR(CheckRate("read_bytes_per_second", offer.rates.read_bytes_per_second));
  RETURN_IF_ERROR(CheckRate("flops_per_second", offer.rates.flops_per_second));
  if (offer.ready) {
    RETURN_IF_ERROR(ParseListenAddress(offer.address, 0).status());
    if (static_cast<int64_t>(offer.holds.size()) != options_.words.num_layers) {
      return InvalidArgument("holds has %d layers, want %d", offer.holds.size(), options_.words.num_layers);
    }
    for (const auto& layer : offer.holds) {
      if (layer != nullptr && static_cast<int64_t>(layer->size()) != options_.words.shape.max_experts) {
        return InvalidArgument("holds has a layer of %d experts, want %d", layer->size(), options_.words.shape.max_experts);
      }
    }
  }
  const std::lock_guard lock(mutex_);
  std::shared_ptr<ExpertHost>& host = hosts_[offer.incarnation.value()];
  if (host == nullptr) {
    if (hosts_.size() > kMaxHosts) {
      hosts_.erase(offer.incarnation.value());
      return ResourceExhausted("the cluster has %d expert hosts already", kMaxHosts);
    }
    int64_t place = 0;  // the first that is free
    const auto taken = [&](const auto& entry) { return entry.second != nullptr && entry.second->place_ == place; };
    while (std::any_of(hosts_.begin(), hosts_.end(), taken)) ++place;
    host = std::make_shared<ExpertHost>(place, offer);
    host->same_machine_ = offer.machine == options_.machine;
    host->memory_bytes_per_second_ = host->same_machine_ ? options_.memory_bytes_per_second : 0;
    host->shape_ = options_.words.shape;
    spdlog::info("expert host {} joins: {}", place, Escaped(offer.engine));
  }
  const std::lock_guard host_lock(host->mutex_);
  host->since_offer_.Restart();
  if (!host->offer_.ready) host->offer_ = offer;  // what a host that is ready says stays as it is
  return Answer{.place = host->place_,
                .state = host->engine_ != nullptr      ? "connected"
                         : !host->offer_.ready         ? "loading"
                         : host->last_failure_.empty() ? "about to be connected"
                                                       : host->last_failure_};
}

std::vector<std::shared_ptr<ExpertHost>> ExpertHosts::All() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ExpertHost>> all;
  for (const auto& [incarnation, host] : hosts_) all.push_back(host);
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a->place_ < b->place_; });
  return all;
}

std::vector<std::shared_ptr<ExpertHost>> ExpertHosts::Connected() const {
  std::vector<std::shared_ptr<ExpertHost>> connected = All();
  std::erase_if(connected, [](const auto& host) { return host->engine() == nullptr; });
  return connected;
}

void ExpertHosts::ConnectTo(ExpertHost& host) {
  ExpertHostOffer offer;
  {
    const std::lock_guard lock(host.mutex_);
    if (host.engine_ != nullptr || !host.offer_.ready || !host.retry_at_.Passed()) return;
    offer = host.offer_;
  }
  FirstWords words = options_.words;
  words.incarnation = offer.incarnation.value();
  std::unique_ptr<RemoteEngine> engine;
  const auto connect = [&]() -> absl::StatusOr<ExchangeCost> {
    ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(offer.address, 0));
    if (address.unix_path.empty() && options_.certificates.empty()) {
      return FailedPrecondition("%s is on another host, for which this coordinator has no --cluster-listen", offer.address);
    }
    ASSIGN_OR_RETURN(engine, RemoteEngine::Connect(address, {.folder = options_.certificates, .peer = NodeRole::kWorker}, words,
                                                   Deadline::In(kConnectTimeout)));
    return engine->Measure(Deadline::In(kMeasureTimeout));
  };
  const absl::StatusOr<ExchangeCost> cost = connect();
  if (!cost.ok()) {
    host.NoteFailure(cost.status());
    return;
  }
  const std::lock_guard lock(host.mutex_);
  host.engine_ = std::move(engine);
  host.cost_ = *cost;
  host.slow_in_a_row_ = 0;
  host.since_connect_.Restart();
  host.since_exchange_.Restart();
  spdlog::info(
      "expert host {} at {} takes part: {} records, {:.2f} GB, {:.1f} GB/s; an exchange in {:.0f} us, a row in {:.1f} us",
      host.place_, Escaped(offer.address), offer.held_records, static_cast<double>(offer.held_bytes) / 1e9,
      offer.rates.read_bytes_per_second / 1e9, cost->exchange_seconds * 1e6, cost->row_seconds * 1e6);
}

void ExpertHosts::Tend() {
  for (const std::shared_ptr<ExpertHost>& host : All()) {
    bool silent = false, idle = false;
    uint64_t incarnation = 0;
    std::shared_ptr<RemoteEngine> engine;
    {
      const std::lock_guard lock(host->mutex_);
      silent = host->since_offer_.Elapsed() > options_.silence;
      idle = host->since_exchange_.Elapsed() > kIdle;
      engine = host->engine_;
      incarnation = host->offer_.incarnation.value();
      if (silent && engine != nullptr) engine->Cut();
      if (silent) host->engine_ = nullptr;
    }
    if (silent) {
      spdlog::warn("expert host {} is silent: it takes part no more", host->place_);
      const std::lock_guard lock(mutex_);
      hosts_.erase(incarnation);
      continue;
    }
    if (engine == nullptr) {
      ConnectTo(*host);
    } else if (const std::unique_lock exchange(host->exchange_, std::try_to_lock); idle && exchange.owns_lock()) {
      const absl::StatusOr<ExchangeCost> cost = engine->Measure(Deadline::In(kMeasureTimeout));
      if (!cost.ok()) {
        host->NoteFailure(cost.status());
        continue;
      }
      const std::lock_guard lock(host->mutex_);
      host->cost_ = *cost;
      host->computing_.Relax();  // what made it slow may be over
      host->exchange_cost_.Relax();
      host->since_exchange_.Restart();
    }
  }
}

}  // namespace ferry
