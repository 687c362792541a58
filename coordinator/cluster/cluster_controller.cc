#include "coordinator/cluster/cluster_controller.h"

#include <algorithm>
#include <utility>

#include "common/expert_wire.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/rpc/acceptor.h"
#include "common/thread_limit.h"
#include "coordinator/cluster/registration.h"
#include "coordinator/planning/step_rows.h"

namespace ferry {
namespace {

constexpr absl::Duration kControllerTick = absl::Milliseconds(50);
// Between epochs that end soon after they began.
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
constexpr absl::Duration kLongEpoch = absl::Seconds(30);
// Rows of one request for host experts. A longer batch reads an expert once for so many tokens that reading it again
// for the rest costs nothing beside the products, and each of the mailboxes stays small: 2880 * 4 bytes a row, and
// top_k times that for answers.
constexpr int64_t kMaxMailboxRows = 1024;

MailboxShape MailboxShapeOf(const ModelConfig& model, const CacheShape& cache) {
  const int64_t rows = std::min(cache.max_batch_tokens, kMaxMailboxRows);
  return {.n_embd = model.n_embd,
          .max_rows = rows,
          .max_entries = rows * model.router.top_k,
          .max_experts = model.router.num_experts};
}

// What clients are told: a fault inside the cluster is no fault of their arguments.
absl::Status ForClients(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      return status;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return Unavailable("%s", status.message());
    default:
      return Internal("%s", status.message());
  }
}

}  // namespace

ClusterController::ClusterController(const ClusterOptions& options, GenerationLoop* loop, const Clock* clock,
                                     std::function<void(bool)> set_serving)
    : options_(options),
      loop_(*loop),
      clock_(*clock),
      set_serving_(std::move(set_serving)),
      membership_(
          {.num_workers = static_cast<int>(options.placement.workers.size()), .heartbeat_timeout = options.heartbeat_timeout},
          clock),
      reports_(options.placement.workers.size()),
      epoch_began_(clock->Now()),
      next_attempt_(clock->Now()),
      pause_(kFirstPause) {}

absl::StatusOr<std::unique_ptr<ClusterController>> ClusterController::Create(const ClusterOptions& options, GenerationLoop* loop,
                                                                             const Clock* clock,
                                                                             std::function<void(bool)> set_serving) {
  std::unique_ptr<ClusterController> controller(new ClusterController(options, loop, clock, std::move(set_serving)));
  ASSIGN_OR_RETURN(controller->thread_, StartThread([raw = controller.get()] { raw->Run(); }));
  return controller;
}

ClusterController::~ClusterController() { Stop(Unavailable("the coordinator is ending")); }

MailboxShape ClusterController::mailbox_shape() const { return MailboxShapeOf(options_.model, options_.placement.cache); }

void ClusterController::Open(const ExpertStore* store, ExpertExchange* exchange, const ExpertDataPlace& data) {
  const std::lock_guard lock(mutex_);
  expert_data_ = data;
  store_ = store;
  exchange_ = exchange;
}

void ClusterController::SetLoadProgress(double fraction) {
  const std::lock_guard lock(mutex_);
  load_progress_ = fraction;
}

void ClusterController::Stop(const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (pipeline_ != nullptr) {
    EndEpoch({.status = status, .suspect = std::nullopt, .incarnation = {}});
  } else {
    loop_.Suspend(ForClients(status));  // ends the requests that a lost epoch left waiting
  }
}

bool ClusterController::WaitUntilServing(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  while (!has_served_ && !stop_) {
    const absl::Duration left = deadline - clock_.Now();
    if (left <= absl::ZeroDuration()) return false;
    changed_.wait_for(lock, absl::ToChronoMilliseconds(std::min(left, kControllerTick)));
  }
  return has_served_;
}

// ---------------------------------------------------------------------------------------------------- workers

absl::Status ClusterController::Register(const internal::v1::RegisterRequest& request, internal::v1::RegisterResponse* response) {
  const std::lock_guard register_lock(register_mutex_);
  ExpertExchange* exchange = nullptr;
  ExpertDataPlace data;
  {
    const std::lock_guard lock(mutex_);
    if (stop_) return Unavailable("the coordinator is ending");
    if (exchange_ == nullptr) return Unavailable("the coordinator is loading the experts: %.0f %%", 100 * load_progress_);
    exchange = exchange_;
    data = expert_data_;
  }
  ASSIGN_OR_RETURN(const Registration registration, CheckRegistration(request, {.model_fingerprint = options_.fingerprint,
                                                                                .machine = MachineId(),
                                                                                .expert_transport = options_.expert_transport}));
  if (!registration.info.loopback && options_.identity == nullptr) {
    return InvalidArgument("address is %s, but this coordinator has no certificates for workers of other hosts: --cluster-certs",
                           request.address());
  }
  const std::string& transport = registration.expert_transport;
  LoseTheGone();
  ASSIGN_OR_RETURN(const WorkerId worker, membership_.Register(registration.info, registration.wanted));
  const LayerRange& layers = options_.placement.workers[worker.value()].layers;
  const MailboxShape request_shape = transport == "shm" ? mailbox_shape() : ShapeOfDataConnection(mailbox_shape());
  ExchangePeer peer = {.worker = worker,
                       .incarnation = Incarnation(request.incarnation()),
                       .first_layer = layers.first,
                       .end_layer = layers.end,
                       .num_slots = 0,  // until its heartbeats name them
                       .link_bytes_per_second = registration.link_bytes_per_second,
                       .ship_all = !options_.ooae,
                       .has_gpu = request.has_gpu(),
                       .overrides = {},
                       .way = {.cost = {}, .max_rows = request_shape.max_rows, .max_entries = request_shape.max_entries}};
  for (const ExpertRule rule : options_.placement.expert_rules) {
    peer.overrides.push_back(rule == ExpertRule::kHost     ? ExpertPlace::kHost
                             : rule == ExpertRule::kDevice ? ExpertPlace::kShip
                                                           : ExpertPlace::kResident);
  }
  exchange->AddPeer(peer);
  FillResponse(request, worker, response);
  response->set_expert_transport(transport);
  if (transport == "shm") {
    const absl::StatusOr<std::string> key = exchange->OpenMailboxes(worker, mailbox_shape());
    if (!key.ok()) {
      membership_.MarkLost(worker, Incarnation(request.incarnation()), std::string(key.status().message()));
      return Annotate(key.status(), "no mailboxes");
    }
    response->set_descriptor_socket(exchange->socket_name());
    response->set_descriptor_key(*key);
  }
  if (transport == "tcp") {
    response->set_expert_socket(data.unix_path);
    response->set_expert_port(static_cast<uint32_t>(data.port));
  }
  {
    const std::lock_guard lock(mutex_);
    reports_[worker.value()] = {.expert_transport = transport, .heartbeat = {}};
  }
  spdlog::info("worker {} registered: layers {}-{}, {} at {}, experts over {}", worker.value(), layers.first, layers.end - 1,
               request.device(), request.address(), transport);
  wake_.notify_all();
  return absl::OkStatus();
}

void ClusterController::FillResponse(const internal::v1::RegisterRequest& request, WorkerId worker,
                                     internal::v1::RegisterResponse* response) const {
  const WorkerPlacement& placement = options_.placement.workers[worker.value()];
  response->set_worker_id(worker.value());
  response->set_num_workers(static_cast<uint32_t>(options_.placement.workers.size()));
  response->set_first_layer(placement.layers.first);
  response->set_end_layer(placement.layers.end);
  response->set_dense_bytes(placement.dense_bytes);
  response->set_model(options_.model_header);
  const CacheShape& cache = options_.placement.cache;
  internal::v1::CacheShape* const out = response->mutable_cache();
  out->set_kv_type(static_cast<uint32_t>(cache.key_type));
  out->set_kv_value_type(static_cast<uint32_t>(cache.value_type));
  out->set_num_blocks(cache.num_blocks);
  out->set_num_slots(cache.num_slots);
  out->set_ring_blocks(cache.ring_blocks);
  out->set_num_host_blocks(cache.num_host_blocks);
  out->set_num_host_states(cache.num_host_states);
  out->set_max_batch_tokens(cache.max_batch_tokens);
  out->set_micro_batch_tokens(cache.micro_batch_tokens);
  const MailboxShape mailbox = mailbox_shape();
  response->set_mailbox_max_rows(mailbox.max_rows);
  response->set_mailbox_max_entries(mailbox.max_entries);
  response->set_heartbeat_interval_seconds(absl::ToDoubleSeconds(options_.heartbeat_interval));
  response->set_heartbeat_timeout_seconds(absl::ToDoubleSeconds(options_.heartbeat_timeout));
  response->set_ooae(options_.ooae);
  response->set_may_help(options_.help);
  response->set_model_fingerprint(options_.fingerprint);
  for (int64_t layer = placement.layers.first; layer < placement.layers.end; ++layer) {
    const ExpertRule rule = options_.placement.expert_rules[layer];
    if (rule == ExpertRule::kAny) continue;
    internal::v1::ExpertOverride* const override_ = response->add_overrides();
    override_->set_layer(static_cast<uint32_t>(layer));
    override_->set_place(rule == ExpertRule::kHost ? internal::v1::ExpertOverride::HOST : internal::v1::ExpertOverride::DEVICE);
  }
}

absl::Status ClusterController::Heartbeat(const internal::v1::HeartbeatRequest& request,
                                          internal::v1::HeartbeatResponse* response) {
  RETURN_IF_ERROR(CheckHeartbeat(request));
  const WorkerId worker(static_cast<int32_t>(request.worker_id()));
  const bool ready = request.state() == "ready";
  RETURN_IF_ERROR(membership_.RecordHeartbeat(worker, Incarnation(request.incarnation()), ready));
  ExpertExchange* exchange = nullptr;
  {
    const std::lock_guard lock(mutex_);
    reports_[worker.value()].heartbeat = request;
    exchange = exchange_;
  }
  exchange->UpdatePeer(worker,
                       {.num_slots = request.expert_slots(),
                        .link_bytes_per_second = request.link_bytes_per_second(),
                        .exchange = {.exchange_seconds = request.exchange_seconds(), .row_seconds = request.row_seconds()}});
  response->set_epoch(membership_.epoch());
  if (ready) wake_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<LayerRange> ClusterController::LayersOf(WorkerId worker, Incarnation incarnation) const {
  RETURN_IF_ERROR(membership_.Check(worker, incarnation));
  return options_.placement.workers[worker.value()].layers;
}

void ClusterController::ListMembers(internal::v1::ListMembersResponse* response) const {
  const std::string here = MachineId();
  for (const Member& member : membership_.Members()) {
    internal::v1::ClusterMember* const out = response->add_members();
    out->set_worker_id(static_cast<uint32_t>(member.id.value()));
    out->set_state(NameOf(member.state));
    out->set_pid(member.info.pid);
    out->set_same_machine(member.info.machine == here);
    out->set_lost_because(member.lost_because);
  }
}

// ---------------------------------------------------------------------------------------------------- epochs

void ClusterController::Run() {
  while (true) {
    std::optional<PipelineFailure> failure;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, absl::ToChronoMilliseconds(kControllerTick), [&] { return stop_ || failure_.has_value(); });
      if (stop_) return;
      failure = std::exchange(failure_, std::nullopt);
    }
    if (failure && pipeline_ != nullptr) EndEpoch(*failure);
    ExpireHeartbeats();
    if (pipeline_ != nullptr) pipeline_->CheckTimeout();
    if (pipeline_ != nullptr && membership_.epoch() == 0) {
      EndEpoch({.status = Unavailable("%s", membership_.Describe()), .suspect = std::nullopt, .incarnation = {}});
    }
    if (pipeline_ == nullptr && membership_.AllReady() && clock_.Now() >= next_attempt_) TryBeginEpoch();
  }
}

void ClusterController::ExpireHeartbeats() {
  for (const Member& lost : membership_.ExpireHeartbeats()) {
    spdlog::error("worker {} is lost: {}", lost.id.value(), lost.lost_because);
    // One on this host hangs, or its connection would have broken: its requests hear that their time is over. Another host may
    // be gone with all that is on it, and that its worker cannot be reached is all that is known.
    const bool hangs = lost.info.machine == MachineId();
    if (pipeline_ != nullptr) {
      EndEpoch({.status = hangs ? DeadlineExceeded("worker %d is lost: %s", lost.id.value(), lost.lost_because)
                                : Unavailable("worker %d on another host is lost: %s", lost.id.value(), lost.lost_because),
                .suspect = std::nullopt,
                .incarnation = {}});
    }
    RemovePeer(lost.id, lost.info.incarnation);
  }
}

void ClusterController::LoseTheGone() {
  for (const Member& member : membership_.Members()) {
    if (member.state != MemberState::kLoading && member.state != MemberState::kReady) continue;
    const absl::StatusOr<ListenAddress> address = ParseListenAddress(member.info.address, 0);
    if (!address.ok() || !NobodyListens(*address)) continue;
    if (!membership_.MarkLost(member.id, member.info.incarnation, "its process is gone")) continue;
    spdlog::error("worker {} is lost: its process is gone", member.id.value());
    exchange_->RemovePeer(member.id);
    wake_.notify_all();
  }
}

void ClusterController::RemovePeer(WorkerId worker, Incarnation lost) {
  const std::lock_guard register_lock(register_mutex_);
  if (membership_.Members()[worker.value()].info.incarnation == lost) exchange_->RemovePeer(worker);
}

void ClusterController::TryBeginEpoch() {
  if (std::exchange(first_epoch_, false) && options_.before_first_epoch) options_.before_first_epoch(Workers());
  const absl::StatusOr<uint64_t> epoch = membership_.BeginEpoch();
  if (!epoch.ok()) return;
  {
    const std::lock_guard lock(mutex_);
    failure_.reset();
  }
  PipelineOptions options = {
      .epoch = *epoch,
      .workers = {},
      .vocab_size = options_.model.vocab_size,
      .max_steps_in_flight = options_.max_steps_in_flight,
      .step_timeout = options_.step_timeout,
      .trace = options_.trace,
      .identity = options_.identity,
      .on_step = [this](uint64_t step, int64_t rows) { exchange_->NoteStep(step, rows); },
      .on_computed = [this](WorkerId worker, int64_t rows,
                            const v1::ExpertCounters& experts) { exchange_->NoteCopies(worker, rows, experts); }};
  for (const Member& member : membership_.Members()) {
    options.workers.push_back({.id = member.id, .incarnation = member.info.incarnation, .address = member.info.address});
  }
  options.step_cost_rows = StepCost();
  if (options_.help) {
    options.help = exchange_->OfferHelp(HelpShapeFor(options_.model.n_embd, options_.placement.cache.max_batch_tokens,
                                                     options_.model.router.top_k, options_.model.router.num_experts));
  }
  PipelineFailure failure;
  const auto on_failed = [this](PipelineFailure failure) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(failure);
    wake_.notify_all();
  };
  absl::StatusOr<std::unique_ptr<Pipeline>> pipeline = Pipeline::Begin(options, &clock_, on_failed, &failure);
  epoch_began_ = clock_.Now();
  if (!pipeline.ok()) {
    EndEpoch(failure);
    return;
  }
  pipeline_ = *std::move(pipeline);
  exchange_->BeginEpoch();  // after the workers, who have given up the steps of the epoch before
  loop_.Attach(pipeline_.get());
  set_serving_(true);
  {
    const std::lock_guard lock(mutex_);
    serving_ = has_served_ = true;
  }
  changed_.notify_all();
  spdlog::info("epoch {} began with {} workers", *epoch, options.workers.size());
}

double ClusterController::StepCost() const {
  std::vector<WorkerCapacity> capacities;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < options_.placement.workers.size(); ++i) {
    const internal::v1::HeartbeatRequest& heartbeat = reports_[i].heartbeat;
    capacities.push_back({.layers = options_.placement.workers[i].layers,
                          .slots = static_cast<int64_t>(heartbeat.expert_slots()),
                          .link_bytes_per_second = heartbeat.link_bytes_per_second(),
                          .flops_per_second = heartbeat.expert_flops_per_second()});
  }
  return StepCostRows(options_.model, store_->layout(), capacities);
}

void ClusterController::EndEpoch(const PipelineFailure& failure) {
  set_serving_(false);
  bool another_may_come = false;
  {
    const std::lock_guard lock(mutex_);
    serving_ = false;
    another_may_come = has_served_ && !stop_;
  }
  if (another_may_come) {
    loop_.Hold(ForClients(failure.status));
  } else {
    loop_.Suspend(ForClients(failure.status));
  }
  membership_.EndEpoch();
  if (failure.lost && failure.suspect) {
    const std::string because(failure.status.message());
    if (membership_.MarkLost(*failure.suspect, failure.incarnation, because)) RemovePeer(*failure.suspect, failure.incarnation);
  }
  pipeline_.reset();
  // A worker that keeps dying is not started at once by its supervisor, and requests wait: that is pause enough.
  const absl::Time now = clock_.Now();
  const bool worker_lost = !membership_.AllReady();
  pause_ = worker_lost || now - epoch_began_ >= kLongEpoch ? kFirstPause : std::min(2 * pause_, kLongestPause);
  next_attempt_ = now + pause_;
  const bool stopping = StopRequested();
  spdlog::log(stopping ? spdlog::level::info : spdlog::level::err, "the epoch ended: {}", std::string(failure.status.message()));
}

bool ClusterController::StopRequested() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

// ---------------------------------------------------------------------------------------------------- for people

std::string ClusterController::state() const {
  const std::lock_guard lock(mutex_);
  if (serving_) return "serving";
  return has_served_ ? "degraded" : "loading";
}

std::vector<RegisteredWorker> ClusterController::Workers() const {
  std::vector<RegisteredWorker> workers;
  for (const Member& member : membership_.Members()) {
    const LayerRange& layers = options_.placement.workers[member.id.value()].layers;
    v1::WorkerInfo info;
    info.set_worker_id(member.id.value());
    info.set_device(member.info.device);
    info.set_first_layer(layers.first);
    info.set_end_layer(layers.end);
    info.set_state(NameOf(member.state));
    info.set_pid(member.info.pid);
    {
      const std::lock_guard lock(mutex_);
      const Report& report = reports_[member.id.value()];
      const std::string& instead = report.heartbeat.expert_transport();
      info.set_expert_transport(instead.empty() ? report.expert_transport : instead);
      info.set_dense_bytes(report.heartbeat.dense_bytes());
      info.set_kv_bytes(report.heartbeat.kv_bytes());
      info.set_expert_slots(report.heartbeat.expert_slots());
      info.set_expert_slot_bytes(report.heartbeat.expert_slot_bytes());
      info.set_experts_in_place(report.heartbeat.experts_in_place());
      info.set_resident_bytes(report.heartbeat.resident_bytes());
      info.set_link_bytes_per_second(report.heartbeat.link_bytes_per_second());
      info.set_exchange_seconds(report.heartbeat.exchange_seconds());
      if (const double row_seconds = report.heartbeat.row_seconds(); row_seconds > 0) {
        info.set_row_bytes_per_second(static_cast<double>(options_.model.n_embd * sizeof(float)) / row_seconds);
      }
      info.set_expert_flops_per_second(report.heartbeat.expert_flops_per_second());
      info.set_expert_read_bytes_per_second(report.heartbeat.expert_read_bytes_per_second());
      info.set_operation_seconds(report.heartbeat.operation_seconds());
      *info.mutable_experts() = report.heartbeat.experts();
      if (report.heartbeat.has_hidden_states()) *info.mutable_hidden_states() = report.heartbeat.hidden_states();
    }
    workers.push_back({.info = std::move(info), .incarnation = member.info.incarnation, .address = member.info.address});
  }
  return workers;
}

std::vector<PipelineWorker> ClusterController::LiveWorkers() const {
  std::vector<PipelineWorker> workers;
  for (const Member& member : membership_.Members()) {
    if (member.state != MemberState::kLoading && member.state != MemberState::kReady) continue;
    workers.push_back({.id = member.id, .incarnation = member.info.incarnation, .address = member.info.address});
  }
  return workers;
}

}  // namespace ferry
