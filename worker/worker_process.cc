#include "worker/worker_process.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <utility>

#include "common/byte_size.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/host_memory.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/nccl/nccl_library.h"
#include "common/rpc/acceptor.h"
#include "common/rpc/certificate_keeper.h"
#include "common/rpc/channels.h"
#include "common/rpc/join_cluster.h"
#include "common/rpc/node_identity.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "kernels/device_peer.h"
#include "worker/activation_listener.h"
#include "worker/agent.h"
#include "worker/assignment.h"
#include "worker/dense_stream.h"
#include "worker/expert_link.h"
#include "worker/server_limits.h"
#include "worker/stage.h"
#include "worker/step_runner.h"
#include "worker/worker_service.h"

namespace ferry {
namespace {

constexpr absl::Duration kDescriptorTimeout = absl::Seconds(10);
constexpr absl::Duration kDevicePatience = absl::Seconds(10);  // after a failed step: far longer than what may still be queued
constexpr absl::Duration kServerDrain = absl::Milliseconds(500);
constexpr absl::Duration kExchangePatience = absl::Seconds(20);  // 21 exchanges over a network of 50 ms take 2.2
constexpr absl::Duration kLinkTime = absl::Milliseconds(50);     // a few hundred records over PCIe 5, some over a network

Incarnation RandomIncarnation() {
  std::random_device random;
  uint64_t value = 0;
  while (value == 0) value = uint64_t{random()} << 32 | random();
  return Incarnation(value);
}

absl::StatusOr<ListenAddress> AddressOf(const char* flag, const std::string& text, int default_port) {
  absl::StatusOr<ListenAddress> address = ParseListenAddress(text, default_port);
  return address.ok() ? std::move(address) : Annotate(address.status(), flag);
}

// The rates that a worker measures at its start; 0: unknown, and predictions guess them.
struct DeviceRates {
  double link_bytes_per_second = 0;
  ExchangeCost exchange;  // zeros also where the coordinator's memory is shared
  ExpertRates experts;
  double operation_seconds = 0;
};

// The contents of the next heartbeat. Thread-safe: the main thread writes it as the worker loads, the agent's reads it.
class Report {
 public:
  Report() { heartbeat_.set_state("loading"); }

  void SetProgress(int64_t dense_bytes, int64_t all_dense_bytes) {
    const std::lock_guard lock(mutex_);
    heartbeat_.set_dense_bytes(dense_bytes);
    if (all_dense_bytes > 0) {
      heartbeat_.set_load_progress(std::min(1.0, static_cast<double>(dense_bytes) / static_cast<double>(all_dense_bytes)));
    }
  }
  void SetExpertTransport(const std::string& name) {
    const std::lock_guard lock(mutex_);
    heartbeat_.set_expert_transport(name);
  }
  // `runner` and `service` are read until Detach.
  void SetReady(const Stage& stage, const DeviceRates& rates, StepRunner* runner, const WorkerService* service) {
    const ExpertCache* const cache = stage.expert_cache();
    const std::lock_guard lock(mutex_);
    runner_ = runner;
    service_ = service;
    heartbeat_.set_state("ready");
    heartbeat_.set_load_progress(1);
    heartbeat_.set_dense_bytes(stage.dense_bytes());
    heartbeat_.set_kv_bytes(stage.kv_bytes());
    heartbeat_.set_expert_slots(cache == nullptr ? 0 : cache->num_slots());
    heartbeat_.set_expert_slot_bytes(cache == nullptr ? 0 : cache->slot_bytes());
    heartbeat_.set_experts_in_place(stage.options().experts.in_place);
    heartbeat_.set_link_bytes_per_second(rates.link_bytes_per_second);
    heartbeat_.set_exchange_seconds(rates.exchange.exchange_seconds);
    heartbeat_.set_row_seconds(rates.exchange.row_seconds);
    heartbeat_.set_expert_flops_per_second(rates.experts.flops_per_second);
    heartbeat_.set_expert_read_bytes_per_second(rates.experts.read_bytes_per_second);
    heartbeat_.set_operation_seconds(rates.operation_seconds);
  }
  void Detach() {
    const std::lock_guard lock(mutex_);
    runner_ = nullptr;
  }
  void Fill(internal::v1::HeartbeatRequest* request) {
    const std::lock_guard lock(mutex_);
    *request = heartbeat_;
    request->set_resident_bytes(ResidentBytes());
    if (runner_ == nullptr) return;
    *request->mutable_experts() = runner_->counters();
    if (v1::HiddenStatesLink link = service_->hidden_states(); !link.way().empty()) {
      *request->mutable_hidden_states() = std::move(link);
    }
  }

 private:
  std::mutex mutex_;
  internal::v1::HeartbeatRequest heartbeat_;
  StepRunner* runner_ = nullptr;
  const WorkerService* service_ = nullptr;
};

// Why the worker ends: the first reason given.
class Ending {
 public:
  explicit Ending(std::function<void()> on_ending) : on_ending_(std::move(on_ending)) {}

  void End(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    if (std::exchange(ended_, true)) return;
    why_ = why;
    on_ending_();
    changed_.notify_all();
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  absl::Status Wait(const std::function<bool()>& asked_to_end) {
    std::unique_lock lock(mutex_);
    while (!ended_) {
      changed_.wait_for(lock, std::chrono::milliseconds(100));
      if (!ended_ && asked_to_end()) {
        ended_ = true;
        on_ending_();
      }
    }
    return why_;
  }

 private:
  const std::function<void()> on_ending_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  absl::Status why_;
};

struct Server {
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Acceptor> acceptor;
};
// Where this worker listens unless it is said: beside the coordinator's socket, or on loopback.
ListenAddress DefaultListen(const ListenAddress& coordinator) {
  if (coordinator.unix_path.empty()) return {.host = "127.0.0.1", .port = 0, .loopback = true};
  const std::filesystem::path folder = std::filesystem::path(coordinator.unix_path).parent_path();
  return {.loopback = true, .unix_path = (folder / absl::StrFormat("worker-%d", getpid())).string()};
}

struct Addresses {
  ListenAddress coordinator, listen;
  std::unique_ptr<NodeIdentity> identity;  // null where both are Unix sockets
};
absl::StatusOr<Addresses> AddressesOf(const WorkerOptions& options) {
  Addresses addresses;
  ASSIGN_OR_RETURN(addresses.coordinator, AddressOf("--coordinator", options.coordinator, kClusterPort));
  addresses.listen = DefaultListen(addresses.coordinator);
  if (!options.listen.empty()) {
    ASSIGN_OR_RETURN(addresses.listen, AddressOf("--listen", options.listen, /*default_port=*/0));
  }
  if (addresses.coordinator.unix_path.empty() || addresses.listen.unix_path.empty()) {
    ASSIGN_OR_RETURN(addresses.identity, NodeIdentity::Open(options.cluster_certs));
  }
  return addresses;
}

// For the worker before this one, on the interface where this one is reached.
std::unique_ptr<ActivationListener> ListenerOf(const WorkerOptions& options, const Addresses& addresses) {
  ListenAddress at = addresses.listen;
  at.port = static_cast<int>(options.data_port);
  if (!at.unix_path.empty()) at.unix_path += "-data";
  const std::string folder = addresses.identity == nullptr ? "" : addresses.identity->folder();
  return std::make_unique<ActivationListener>(at,
                                              DataIdentity{.folder = folder, .peer = NodeRole::kWorker, .or_coordinator = true});
}

absl::StatusOr<Server> Listen(const ListenAddress& listen, const ListenAddress& coordinator, const NodeIdentity* identity,
                              WorkerService* service) {
  // Others are told an address that leads here. On every interface, that is the one on the coordinator's network.
  std::string host = listen.host;
  if (listen.any && coordinator.unix_path.empty()) {
    ASSIGN_OR_RETURN(host, LocalHostTowards(coordinator));
  }
  grpc::ServerBuilder builder;
  SetServerLimits(builder);
  Server result;
  const bool local = !listen.unix_path.empty();
  ASSIGN_OR_RETURN(result.acceptor, Acceptor::Listen(listen, kWorkerConnections));
  result.acceptor->AddTo(builder, local ? grpc::InsecureServerCredentials() : identity->ForServer(/*admits_strangers=*/false));
  builder.RegisterService(service);
  RETURN_IF_ERROR(CheckServerThreadsCanStart());
  result.server = builder.BuildAndStart();
  if (result.server == nullptr) return Internal("this worker's server does not start");
  RETURN_IF_ERROR(result.acceptor->Start());
  result.address = local ? listen.ToString() : absl::StrFormat("%s:%d", host, result.acceptor->address().port);
  spdlog::info("listening on {}", result.address);
  return result;
}

bool HasGpu(const Ops& ops) { return ops.name().starts_with("cuda"); }

internal::v1::RegisterRequest MakeRegisterRequest(const WorkerOptions& options, const std::string& address,
                                                  Incarnation incarnation, Ops& ops) {
  internal::v1::RegisterRequest request;
  request.set_incarnation(incarnation.value());
  request.set_machine(MachineId());
  request.set_address(address);
  request.set_device(ops.name());
  if (const absl::StatusOr<DeviceMemoryInfo> memory = ops.MemoryInfo(); memory.ok()) {
    request.set_device_memory_bytes(memory->total_bytes);
    request.set_device_free_bytes(memory->free_bytes);
  }
  if (options.wanted_worker_id) request.set_wanted_worker_id(*options.wanted_worker_id);
  request.set_vram_expert_auto(options.vram_experts.automatic);
  request.set_vram_expert_bytes(options.vram_experts.bytes);
  request.set_expert_transport(options.expert_transport);
  request.set_pid(getpid());
  request.set_has_gpu(HasGpu(ops));
  return request;
}

// Renews the certificate of a worker that reached its coordinator with one; null for others.
absl::StatusOr<std::unique_ptr<CertificateKeeper>> KeepCertificate(const Addresses& addresses,
                                                                   std::shared_ptr<grpc::Channel> channel) {
  if (addresses.identity == nullptr || !addresses.coordinator.unix_path.empty()) return nullptr;
  return CertificateKeeper::Start(addresses.identity->folder(), [channel = std::move(channel)](const std::string& request_pem) {
    return RenewCertificate(channel, request_pem);
  });
}

// Asks the coordinator for a place. Errors of Agent::Register and AssignmentFromProto.
absl::StatusOr<Assignment> Join(const WorkerOptions& options, internal::v1::Cluster::StubInterface* cluster,
                                const std::string& address, Incarnation incarnation, Ops& ops,
                                const std::function<bool()>& cancelled) {
  ASSIGN_OR_RETURN(const internal::v1::RegisterResponse response,
                   Agent::Register(cluster, MakeRegisterRequest(options, address, incarnation, ops),
                                   absl::Seconds(options.connect_patience_seconds), cancelled));
  ASSIGN_OR_RETURN(Assignment assignment, AssignmentFromProto(response));
  InitLog(absl::StrFormat("worker %d", assignment.worker_id), options.log_level);
  spdlog::info("layers {}-{} of {}, experts over {}", assignment.first_layer, assignment.end_layer - 1,
               assignment.model.num_layers, assignment.expert_transport);
  return assignment;
}

Agent::Options AgentOptionsOf(const Assignment& assignment, Incarnation incarnation, bool over_loopback) {
  return {.worker_id = assignment.worker_id,
          .incarnation = incarnation,
          .interval = assignment.heartbeat_interval,
          .timeout = assignment.heartbeat_timeout,
          .same_machine = assignment.expert_transport == "shm" || over_loopback};
}

// Whether this worker reads experts where they lie. FailedPrecondition: --unified on, which this worker's other flags or its
// place rule out.
absl::StatusOr<bool> ComputesInPlace(const WorkerOptions& options, const Assignment& assignment, Ops& ops) {
  const bool slots_wanted = !options.vram_experts.automatic && options.vram_experts.bytes > 0;
  if (options.unified == Unified::kOn) {
    if (slots_wanted) return FailedPrecondition("--unified on computes experts where they lie: leave out --vram-experts");
    if (!assignment.ooae) return FailedPrecondition("--unified on copies no experts: leave out --no-ooae");
    if (assignment.expert_transport != "shm") {
      return FailedPrecondition("--unified on needs the coordinator's memory, and experts come over %s",
                                assignment.expert_transport);
    }
    return true;
  }
  if (options.unified == Unified::kOff || slots_wanted || !assignment.ooae || assignment.expert_transport != "shm") return false;
  if (!HasGpu(ops)) return false;
  ASSIGN_OR_RETURN(const DeviceMemoryInfo memory, ops.MemoryInfo());
  return memory.of_host;
}

StageOptions StageOptionsOf(const WorkerOptions& options, const Assignment& assignment, bool has_gpu, bool in_place) {
  return {.model = assignment.model,
          .arena = assignment.arena,
          .first_layer = assignment.first_layer,
          .end_layer = assignment.end_layer,
          .kv = assignment.kv,
          .max_rows = assignment.max_rows,
          .micro_batch_rows = assignment.micro_batch_rows,
          .dense_bytes = assignment.dense_bytes,
          .expert_slot_bytes = options.vram_experts.automatic ? 0 : options.vram_experts.bytes,
          .expert_slots_auto = options.vram_experts.automatic && has_gpu && !in_place,
          .may_help = assignment.num_workers > 1 && assignment.expert_transport == "shm" && assignment.may_help,
          .experts = {.ooae = assignment.ooae, .in_place = in_place, .force = options.force_division, .rules = assignment.rules}};
}

bool HasSlots(const StageOptions& options) { return options.expert_slots_auto || options.expert_slot_bytes > 0; }
bool ReadsArena(const StageOptions& options) { return HasSlots(options) || options.experts.in_place; }

// Where the coordinator answers requests for experts on data connections. FailedPrecondition: nowhere.
absl::StatusOr<ListenAddress> ExpertAddress(const Assignment& assignment, const Addresses& addresses) {
  if (!addresses.coordinator.unix_path.empty()) return ParseListenAddress("unix:" + assignment.expert_socket, 0);
  if (assignment.expert_port == 0) return FailedPrecondition("the coordinator takes no data connections of other hosts");
  ListenAddress address = addresses.coordinator;
  address.port = assignment.expert_port;
  return address;
}

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectExpertsOverTcp(const Assignment& assignment, const Addresses& addresses,
                                                                  Incarnation incarnation, Ops* ops, bool records) {
  ASSIGN_OR_RETURN(const ListenAddress address, ExpertAddress(assignment, addresses));
  return ConnectDataLink(
      {.address = address,
       .identity = {.folder = addresses.identity == nullptr ? "" : addresses.identity->folder(), .peer = NodeRole::kCoordinator},
       .words = {.incarnation = incarnation.value(),
                 .worker = assignment.worker_id,
                 .fingerprint = assignment.model_fingerprint,
                 .num_layers = assignment.model.num_layers,
                 .shape = ShapeOfDataConnection(assignment.mailbox)},
       .arena = assignment.arena,
       .records = records},
      ops, Deadline::In(kDescriptorTimeout));
}

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectExperts(const WorkerOptions& worker, const Assignment& assignment,
                                                           const Addresses& addresses, Incarnation incarnation,
                                                           internal::v1::Cluster::StubInterface* cluster, Ops* ops,
                                                           const StageOptions& options) {
  if (assignment.expert_transport == "shm") {
    return ConnectShmLink({.descriptor_socket = assignment.descriptor_socket,
                           .descriptor_key = assignment.descriptor_key,
                           .mailbox = assignment.mailbox,
                           .incarnation = incarnation,
                           .arena = assignment.arena},
                          ops, /*pin=*/ReadsArena(options), Deadline::In(kDescriptorTimeout));
  }
  if (assignment.expert_transport == "tcp") {
    absl::StatusOr<std::unique_ptr<ExpertLink>> link =
        ConnectExpertsOverTcp(assignment, addresses, incarnation, ops, HasSlots(options));
    if (link.ok() || worker.expert_transport != "auto") return link;
    spdlog::warn("experts come over gRPC, which is slower, since a data connection for them failed: {}",
                 link.status().ToString());
  }
  return ConnectGrpcLink({.worker_id = assignment.worker_id,
                          .incarnation = incarnation,
                          .arena = assignment.arena,
                          .n_embd = assignment.model.n_embd,
                          .max_rows = assignment.mailbox.max_rows,
                          .max_entries = assignment.mailbox.max_entries,
                          .records = HasSlots(options)},
                         cluster, ops);
}

// A failure to measure the device or an exchange is logged and leaves its rates unknown.
absl::StatusOr<DeviceRates> MeasureRates(Stage& stage, ExpertLink& experts_link, Ops& ops, int64_t n_embd) {
  ASSIGN_OR_RETURN(const ExpertCache::Measurement link, stage.MeasureLink(kLinkTime));
  DeviceRates rates{.link_bytes_per_second = link.rate()};
  if (stage.expert_cache() != nullptr) {  // without slots there is no choice to plan
    const absl::StatusOr<ExchangeCost> exchange = experts_link.MeasureExchange(Deadline::In(kExchangePatience));
    if (!exchange.ok()) spdlog::warn("exchanges with the coordinator could not be measured: {}", exchange.status().ToString());
    rates.exchange = exchange.value_or(ExchangeCost());
  }
  if (!HasGpu(ops)) return rates;  // a CPU's rates are the host's
  const absl::StatusOr<ExpertRates> experts = stage.MeasureExperts();
  if (!experts.ok()) spdlog::warn("this device's expert products could not be measured: {}", experts.status().ToString());
  const absl::StatusOr<double> operation = MeasureOperation(ops, n_embd);
  if (!operation.ok()) spdlog::warn("this device's small operations could not be measured: {}", operation.status().ToString());
  rates.experts = experts.value_or(ExpertRates());
  rates.operation_seconds = operation.value_or(0);
  return rates;
}

// Logs the progress once a second. A failure is no error: steps fetch the missing experts later.
absl::Status FillSlots(Stage& stage, const std::function<bool()>& cancelled) {
  const Stopwatch filling;
  Stopwatch since_last_word;
  const absl::StatusOr<int64_t> filled = stage.FillSlots([&](int64_t done, int64_t all) {
    if (since_last_word.Elapsed() >= absl::Seconds(1)) {
      since_last_word.Restart();
      spdlog::info("filling the expert slots: {} of {}", done, all);
    }
    return !cancelled();
  });
  if (absl::IsCancelled(filled.status())) return filled.status();
  if (!filled.ok()) spdlog::warn("the expert slots are not all filled: {}", filled.status().ToString());
  if (filled.value_or(0) > 0) {
    spdlog::info("all {} experts of these layers are in slots, after {:.1f} s", *filled, filling.Seconds());
  }
  return absl::OkStatus();
}

void LogLoaded(const Stage& stage, const DeviceRates& rates, double seconds) {
  const ExpertCache* const cache = stage.expert_cache();
  const std::string experts = cache != nullptr
                                  ? absl::StrFormat("%d expert slots of %.1f MiB, link %.1f GB/s", cache->num_slots(),
                                                    cache->slot_bytes() / 0x1p20, rates.link_bytes_per_second / 1e9)
                              : stage.options().experts.in_place ? "experts computed where they lie in the host's memory"
                                                                 : "no expert slots";
  spdlog::info("loaded in {:.1f} s: {:.1f} MiB of dense weights, {:.1f} MiB of KV cache, {}", seconds,
               stage.dense_bytes() / 0x1p20, stage.kv_bytes() / 0x1p20, experts);
}

struct LoadedStage {
  std::unique_ptr<Stage> stage;
  DeviceRates rates;
};

// The stage with its weights, its slots filled where they hold every expert. Errors of its parts; Cancelled: by `cancelled`.
absl::StatusOr<LoadedStage> LoadStage(Ops* ops, const StageOptions& options, DenseTensorSource& source, ExpertLink* link,
                                      const std::function<bool()>& cancelled) {
  const Stopwatch loading;
  LoadedStage loaded;
  ASSIGN_OR_RETURN(loaded.stage, Stage::Create(ops, options, source, link));
  ASSIGN_OR_RETURN(loaded.rates, MeasureRates(*loaded.stage, *link, *ops, options.model.n_embd));
  RETURN_IF_ERROR(FillSlots(*loaded.stage, cancelled));
  LogLoaded(*loaded.stage, loaded.rates, loading.Seconds());
  return loaded;
}

// What joins this worker's GPU to others. An error says why there is none.
absl::StatusOr<std::unique_ptr<DevicePeers>> OpenPeers(const WorkerOptions& options, const Assignment& assignment, Ops* ops,
                                                       Ending& ending) {
  if (options.transport == Transport::kShm || options.transport == Transport::kTcp || options.transport == Transport::kGrpc) {
    return FailedPrecondition("this worker was started with --transport %s", NameOf(options.transport));
  }
  if (assignment.num_workers == 1 && options.transport == Transport::kAuto) {
    return absl::FailedPreconditionError("there is no other worker");
  }
  const DevicePeersOptions how = {.library = options.nccl_library,
                                  .backend = options.backend,
                                  .on_stuck = [&ending](const absl::Status& why) { ending.End(why); }};
  absl::StatusOr<std::unique_ptr<DevicePeers>> peers = CreateDevicePeers(how, ops);
  if (peers.ok()) spdlog::info("{} can join this GPU to others", (*peers)->name());
  return peers;
}

// After a failed step. A fault of a kernel leaves the device's whole context unusable, and only a new process gets another.
void EndWithoutDevice(Ops& ops, Ending& ending) {
  const absl::Status device = ops.Synchronize(Deadline::In(kDevicePatience));
  if (!device.ok()) ending.End(Annotate(device, "the device does not work any more"));
}

absl::Status StopServing(const Server& server, const absl::Status& why) {
  spdlog::info("ending: {}", why.ok() ? "asked to" : why.ToString());
  server.acceptor->Stop();
  server.server->Shutdown(RpcDeadline(kServerDrain));
  return why;
}

}  // namespace

absl::StatusOr<VramExperts> ParseVramExperts(const std::string& text) {
  if (text == "auto" || text == "-1") return VramExperts{};
  ASSIGN_OR_RETURN(const int64_t bytes, ParseByteSize(text));
  return VramExperts{.automatic = false, .bytes = bytes};
}

absl::Status RunWorker(const WorkerOptions& options, const std::function<bool()>& asked_to_end,
                       const std::function<void()>& on_ending) {
  RETURN_IF_ERROR(PrepareNcclEnvironment(options.nccl_interface));
  const Incarnation incarnation = RandomIncarnation();
  Ending ending(on_ending);
  ASSIGN_OR_RETURN(const Addresses addresses, AddressesOf(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, CreateOps(options.backend));
  spdlog::info("computing on {}", ops->name());

  // Reachable before it registers: the coordinator may call as soon as it knows the address.
  WorkerService service(incarnation, [&ending](const absl::Status& why) { ending.End(why); });
  ASSIGN_OR_RETURN(const Server server, Listen(addresses.listen, addresses.coordinator, addresses.identity.get(), &service));

  const std::shared_ptr<grpc::Channel> channel =
      ConnectPeer(addresses.coordinator.ToString(), NodeRole::kCoordinator, addresses.identity.get(), {.quick_reconnects = true});
  const std::unique_ptr<internal::v1::Cluster::Stub> cluster = internal::v1::Cluster::NewStub(channel);
  ASSIGN_OR_RETURN(const std::unique_ptr<CertificateKeeper> keeper, KeepCertificate(addresses, channel));
  const auto cancelled = [&] { return ending.ended() || asked_to_end(); };
  ASSIGN_OR_RETURN(const Assignment assignment, Join(options, cluster.get(), server.address, incarnation, *ops, cancelled));
  const absl::StatusOr<std::unique_ptr<DevicePeers>> peers = OpenPeers(options, assignment, ops.get(), ending);
  if (options.transport == Transport::kNccl && !peers.ok()) return Annotate(peers.status(), "--transport nccl");
  Report report;
  ASSIGN_OR_RETURN(const std::unique_ptr<Agent> agent,
                   Agent::Start(
                       cluster.get(), AgentOptionsOf(assignment, incarnation, addresses.coordinator.loopback),
                       [&report](internal::v1::HeartbeatRequest* request) { report.Fill(request); },
                       [&ending](const absl::Status& why) { ending.End(why); }));

  ASSIGN_OR_RETURN(const bool in_place, ComputesInPlace(options, assignment, *ops));
  const StageOptions stage_options = StageOptionsOf(options, assignment, HasGpu(*ops), in_place);
  ASSIGN_OR_RETURN(const std::unique_ptr<ExpertLink> link,
                   ConnectExperts(options, assignment, addresses, incarnation, cluster.get(), ops.get(), stage_options));
  report.SetExpertTransport(link->name());
  const std::unique_ptr<DenseTensorSource> source =
      OpenDenseStream(cluster.get(), assignment.worker_id, incarnation,
                      [&](int64_t bytes) { report.SetProgress(bytes, assignment.dense_bytes); });
  ASSIGN_OR_RETURN(const LoadedStage loaded, LoadStage(ops.get(), stage_options, *source, link.get(), cancelled));
  Stage* const stage = loaded.stage.get();

  const std::unique_ptr<ActivationListener> listener = ListenerOf(options, addresses);
  ActivationQueue activations(assignment.model.n_embd, assignment.max_rows);
  const absl::Duration awake = HasGpu(*ops) ? kAwakeBesideADevice : absl::ZeroDuration();
  ASSIGN_OR_RETURN(const std::unique_ptr<StepRunner> runner,
                   StepRunner::Create(
                       stage, &activations, [&](const absl::Status&) { EndWithoutDevice(*ops, ending); }, awake));
  service.Attach(runner.get(), &activations,
                 {.ops = ops.get(),
                  .n_embd = assignment.model.n_embd,
                  .max_rows = assignment.max_rows,
                  .num_experts = assignment.model.router.num_experts,
                  .share_memory = assignment.expert_transport == "shm",
                  .identity = addresses.identity.get(),
                  .listener = listener.get(),
                  .transport = options.transport,
                  .peers = peers.ok() ? peers->get() : nullptr,
                  .no_peers_because = std::string(peers.status().message()),
                  .peers_over_network = !options.nccl_interface.empty(),
                  .awake = awake,
                  .num_workers = static_cast<int>(assignment.num_workers)});
  report.SetReady(*stage, loaded.rates, runner.get(), &service);
  agent->Hurry();

  const absl::Status why = ending.Wait(asked_to_end);
  report.Detach();
  return StopServing(server, why);
}

}  // namespace ferry
