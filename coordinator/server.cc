#include "coordinator/server.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/access/api_keys.h"
#include "common/gguf/gguf.h"
#include "common/host_memory.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/model/model_header.h"
#include "common/model/model_tensors.h"
#include "common/rpc/acceptor.h"
#include "common/rpc/certificate_keeper.h"
#include "common/rpc/channels.h"
#include "common/rpc/node_identity.h"
#include "common/rpc/rpc_deadline.h"
#include "common/small_file.h"
#include "common/temporary_folder.h"
#include "common/thread_limit.h"
#include "common/thread_pool.h"
#include "common/tls/certificate_pair.h"
#include "coordinator/cluster/cluster_controller.h"
#include "coordinator/cluster/cluster_service.h"
#include "coordinator/cluster/enrollment_service.h"
#include "coordinator/cluster/expert_host_calls.h"
#include "coordinator/cluster/model_fingerprint.h"
#include "coordinator/experts/divided_engine.h"
#include "coordinator/experts/expert_data_server.h"
#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/experts/expert_hosts.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/experts/load_reporter.h"
#include "coordinator/generation/activity_service.h"
#include "coordinator/generation/ferry_service.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/generation/text_calls.h"
#include "coordinator/generation/vllm_service.h"
#include "coordinator/generation/vocabulary_service.h"
#include "coordinator/health_service.h"
#include "coordinator/message_reads.h"
#include "coordinator/planning/layer_costs.h"
#include "coordinator/planning/probe_disturbance.h"
#include "coordinator/planning/rates_file.h"
#include "coordinator/planning/rates_probe.h"
#include "coordinator/reflection_service.h"
#include "coordinator/server_info.h"
#include "ferry/v1/activity.grpc.pb.h"
#include "ferry/v1/generate.grpc.pb.h"
#include "ferry/v1/vocabulary.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_peaks.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"

namespace ferry {
namespace {

namespace health = grpc::health::v1;

constexpr char kVersion[] = "0.1.0";
constexpr absl::Duration kWorkerShutdownTimeout = absl::Seconds(2);
constexpr AcceptorOptions kClusterConnections = {.max_connections = 512, .max_of_one_peer = 512};
constexpr int kClusterStreams = 64;  // calls of one worker at once: heartbeats, weights and experts
constexpr int kHandshakeTimeoutMs = 10000;
constexpr int kExpertConnections = 8;  // of a worker: four at once, and those of the process before it
constexpr char kExpertSocketSuffix[] = ".experts";
// Of the public API; docs/operations.md has them all in a table.
constexpr int kMaxPublicMessageBytes = 4 << 20;
constexpr size_t kClientBytes = size_t{256} << 20;
constexpr int kClientStreams = 128, kUnreadBytes = 65536;
constexpr int kIdleConnectionMs = 10 * 60 * 1000, kKeepaliveMs = 60000, kKeepaliveTimeoutMs = 20000;
constexpr unsigned kCertificateRefreshSeconds = 30;
// A message costs both ends together about a third of what the demo model's token does on two cores (docs/measurements/cpu.md).
constexpr absl::Duration kBetweenMessages = absl::Microseconds(1500);
constexpr double kGiga = 1e9;
constexpr int64_t kCopyProbeBytes = int64_t{16} << 20;
constexpr int64_t kLargestAutoCacheRam = int64_t{8} << 30;
// Of the int8 dot products that a machine can do, about what expert products with many rows reach: until those are measured.
constexpr double kProductShare = 0.5;

std::string SocketName() {
  std::random_device random;
  return absl::StrFormat("ferry-%d-%08x%08x", getpid(), random(), random());
}

int64_t LongestToken(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) longest = std::max(longest, tokenizer.TokenBytes(id).size());
  return static_cast<int64_t>(longest);
}

class ServerImpl final : public Server {
 public:
  ServerImpl(const CoordinatorOptions& options, GgufFile file, ModelConfig model, std::unique_ptr<Tokenizer> tokenizer)
      : options_(options), file_(std::move(file)), model_(std::move(model)), tokenizer_(std::move(tokenizer)) {}
  ~ServerImpl() override { Drain().IgnoreError(); }

  const std::string& address() const override { return address_; }
  int port() const override { return port_; }
  std::string cluster_address() const override { return cluster_acceptor_->address().ToString(); }
  std::vector<std::string> inputs() const override {
    std::vector<std::string> files = file_.paths();
    files.insert(files.end(), {options_.tls_cert, options_.tls_key, options_.api_keys});
    return files;
  }

  absl::Status Listen() {
    if (!options_.cluster_listen.empty()) {
      ASSIGN_OR_RETURN(identity_, NodeIdentity::Open(options_.cluster_certs));
    }
    RETURN_IF_ERROR(CheckModelTensors(model_, file_));
    ASSIGN_OR_RETURN(arena_layout_, ArenaLayoutOf(file_, model_));
    ASSIGN_OR_RETURN(const ModelSizes sizes, ModelSizesOf(file_, model_));
    PlacementOptions wanted = options_.placement;
    wanted.cache_ram_bytes = CacheRam();
    ASSIGN_OR_RETURN(Placement placement, PlanPlacement(model_, sizes, wanted));
    const CacheShape cache = placement.cache;
    LogSizes(cache, wanted.cache_ram_bytes);
    if (!options_.trace.empty()) {
      ASSIGN_OR_RETURN(trace_, TraceWriter::Create(options_.trace, {.force = options_.force, .inputs = inputs()}));
    }
    ASSIGN_OR_RETURN(loop_, GenerationLoop::Create(SchedulerOptions(cache), Clock::Real(), "the model is being loaded"));
    ASSIGN_OR_RETURN(reads_, MessageReads::Create(Clock::Real(), {}));
    health_service_ = std::make_unique<HealthService>(reads_.get(), std::vector<std::string>{v1::Ferry::service_full_name()});
    ASSIGN_OR_RETURN(
        controller_,
        ClusterController::Create(ClusterOptions{.model = model_,
                                                 .model_header = ModelHeaderOf(file_),
                                                 .fingerprint = FingerprintOf(file_),
                                                 .placement = std::move(placement),
                                                 .expert_transport = options_.expert_transport,
                                                 .ooae = options_.ooae,
                                                 .help = options_.share_links != "off",
                                                 .max_steps_in_flight = options_.steps_in_flight,
                                                 .heartbeat_interval = options_.heartbeat_interval,
                                                 .heartbeat_timeout = options_.heartbeat_timeout,
                                                 .step_timeout = options_.step_timeout,
                                                 .trace = trace_.get(),
                                                 .before_first_epoch = [this](const auto& workers) { FindRates(workers); },
                                                 .identity = identity_.get()},
                                  loop_.get(), Clock::Real(), [this](bool serving) { health_service_->SetServing(serving); }));
    if (!options_.api_keys.empty()) {
      ASSIGN_OR_RETURN(keys_, ApiKeys::Load(options_.api_keys));
      spdlog::info("{} API keys", keys_->size());
    }
    ASSIGN_OR_RETURN(texts_, TextCalls::Create(Clock::Real(), {}));
    // One request at a time of each worker; the engine computes them one after the other.
    ASSIGN_OR_RETURN(expert_pool_, TaskPool::Create(static_cast<int>(options_.placement.num_workers)));
    cluster_service_ = std::make_unique<ClusterService>(controller_.get(), &file_, &model_, expert_pool_.get());
    vocabulary_service_ = std::make_unique<VocabularyService>(tokenizer_.get(), reads_.get(), texts_.get(), keys_.get());
    ASSIGN_OR_RETURN(ferry_service_, FerryService::Create(PartsOfFerryService(cache)));
    vllm_service_ = std::make_unique<VllmService>(ferry_service_.get());
    misses_ = std::make_unique<ExpertMisses>(arena_layout_.num_layers(), arena_layout_.num_experts());
    std::vector<int64_t> layers;
    for (int64_t layer = 0; layer < arena_layout_.num_layers(); ++layer) {
      if (arena_layout_.HasExperts(layer)) layers.push_back(layer);
    }
    activity_service_ = std::make_unique<ActivityService>(ferry_service_.get(), misses_.get(), std::move(layers));
    RETURN_IF_ERROR(StartClusterPlane());
    return StartPublicDoor();
  }

  absl::Status Load() override {
    HostPeaks peaks;
    {
      ASSIGN_OR_RETURN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = options_.threads}));
      LoadReporter report;
      ASSIGN_OR_RETURN(store_, ExpertStore::Load(file_, model_, *pool, [&](const LoadProgress& progress) {
                         report(progress);
                         controller_->SetLoadProgress(static_cast<double>(progress.bytes_done) /
                                                      static_cast<double>(std::max<int64_t>(1, progress.bytes_total)));
                       }));
      peaks = ProbePeaks(*pool);
    }
    const double rate = static_cast<double>(store_->layout().bytes()) / std::max(store_->load_seconds(), 1e-9);
    spdlog::info("loaded {:.2f} GB of experts in {:.1f} s ({:.2f} GB/s), {} pages",
                 static_cast<double>(store_->layout().bytes()) / kGiga, store_->load_seconds(), rate / kGiga,
                 store_->huge_pages() ? "huge" : "ordinary");
    ASSIGN_OR_RETURN(ops_, CreateHostOps({.kind = options_.backend, .num_threads = options_.threads, .isa = options_.isa}));
    engine_ = std::make_unique<ExpertEngine>(store_.get(), ops_.get(), model_.expert.glu, model_.n_embd, trace_.get());
    const ExpertRates guess = UnlessByHand(
        {.read_bytes_per_second = peaks.read_bytes_per_second, .flops_per_second = kProductShare * peaks.int8_ops_per_second});
    RETURN_IF_ERROR(OpenToExpertHosts(peaks));
    divided_->SetRates({.host = guess});
    ASSIGN_OR_RETURN(exchange_, ExpertExchange::Create(store_.get(), divided_.get(), {.host = guess}, SocketName()));
    exchange_->CountIn(misses_.get());
    ASSIGN_OR_RETURN(const HelpMode help, ParseHelpMode(options_.share_links));
    exchange_->SetHelp(help);
    {
      const std::lock_guard lock(info_mutex_);
      load_info_ = {.arena_bytes = store_->layout().bytes(),
                    .huge_pages = store_->huge_pages(),
                    .seconds = store_->load_seconds(),
                    .bytes_per_second = rate,
                    .peaks = peaks,
                    .engine = engine_->name(),
                    .expert_hosts = expert_hosts_.get(),
                    .own_engine = engine_.get(),
                    .exchange = exchange_.get()};
      rates_.host = rates_.host_beside_links = guess;
    }
    cluster_service_->Open(store_.get(), exchange_.get(), expert_host_calls_.get());
    ASSIGN_OR_RETURN(const ExpertDataPlace data, StartExpertData());
    controller_->Open(store_.get(), exchange_.get(), data);
    spdlog::info("waiting for {} workers; experts on the host are computed by {}", options_.placement.num_workers,
                 engine_->name());
    return absl::OkStatus();
  }

  absl::Status WaitUntilServing(absl::Time deadline) override {
    if (controller_->WaitUntilServing(deadline)) return absl::OkStatus();
    return DeadlineExceeded("the cluster is not complete: %s", controller_->Describe());
  }

  absl::Status Drain() override {
    if (std::exchange(drained_, true) || cluster_server_ == nullptr) return drain_status_;
    loop_->StopAdmitting(Unavailable("the coordinator is draining"));
    const GenerationStats stats = loop_->stats();
    if (stats.running + stats.queued > 0) {
      spdlog::info("draining: {} requests are running, {} are waiting", stats.running, stats.queued);
    }
    if (!loop_->WaitUntilIdle(Clock::Real()->Now() + options_.drain_timeout)) {
      spdlog::warn("the drain timeout is over: ending what still runs");
    }
    const std::vector<PipelineWorker> workers = controller_->LiveWorkers();
    controller_->Stop(Unavailable("the coordinator is ending"));
    ForgetContradictedRates();
    std::vector<std::thread> threads;
    for (const PipelineWorker& worker : workers) {
      const auto end = [this, &worker] {
        const absl::Status status = ShutdownWorker(worker, identity_.get(), kWorkerShutdownTimeout);
        if (!status.ok()) spdlog::warn("worker {} did not end: {}", worker.id.value(), status.ToString());
      };
      absl::StatusOr<std::thread> thread = StartThread(end);
      if (thread.ok()) {
        threads.push_back(*std::move(thread));
      } else {
        end();
      }
    }
    for (std::thread& thread : threads) thread.join();
    if (trace_ != nullptr) drain_status_ = trace_->Close();  // no step follows, and giving back the arena takes seconds
    for (Acceptor* const acceptor : {acceptor_.get(), local_acceptor_.get(), cluster_acceptor_.get(), remote_acceptor_.get()}) {
      if (acceptor != nullptr) acceptor->Stop();
    }
    expert_data_ = nullptr;
    if (reads_ != nullptr) reads_->Close();
    for (grpc::Server* const server : {grpc_server_.get(), cluster_server_.get()}) {
      if (server == nullptr) continue;
      server->Shutdown(RpcDeadline(absl::Seconds(2)));
      server->Wait();
    }
    own_folder_.reset();
    return drain_status_;
  }

 private:
  void LogSizes(const CacheShape& cache, int64_t cache_ram_bytes) const {
    spdlog::info(
        "host memory keeps the KV cache of up to {} tokens of earlier requests, and {} {}, in {:.2f} GB at most (--cache-ram)",
        cache.num_host_blocks * kKvBlockTokens, cache.num_host_states,
        model_.keeps_states() || model_.sliding_window() > 0 ? "states" : "ends of sequences",
        static_cast<double>(cache_ram_bytes) / kGiga);
    spdlog::info(
        "the KV cache has {} tokens for up to {} requests at once, and {} at most for one of them; the model was made for {}{}",
        cache.num_blocks * kKvBlockTokens, cache.num_slots, cache.context_per_slot, model_.context_length,
        options_.placement.context_tokens > 0 ? " (-c)" : " (-c for another size)");
    spdlog::info("a step takes up to {} rows (-b{}), attention {} at a time (-ub)", cache.max_batch_tokens,
                 options_.placement.batch_tokens > 0 ? ""
                 : options_.placement.gpu_bytes > 0  ? ", chosen by the GPUs' memory"
                                                     : ", the default without GPUs",
                 cache.micro_batch_tokens);
  }

  FerryService::Parts PartsOfFerryService(const CacheShape& cache) {
    return {.loop = loop_.get(),
            .tokenizer = tokenizer_.get(),
            .clock = Clock::Real(),
            .reads = reads_.get(),
            .texts = texts_.get(),
            .limits = {.context_tokens = cache.context_per_slot,
                       .share_tokens = cache.num_blocks * kKvBlockTokens / cache.num_slots,
                       .vocab_size = model_.vocab_size,
                       .max_token_bytes = LongestToken(*tokenizer_),
                       .between_messages = kBetweenMessages},
            .model_info = ModelInfoOf(options_.alias, model_, arena_layout_, cache),
            .server_info = [this] { return ServerInfo(); },
            .keys = keys_.get()};
  }

  // --cache-ram, or a share of the memory that the experts leave.
  int64_t CacheRam() const {
    if (options_.cache_ram_bytes >= 0) return options_.cache_ram_bytes;
    const int64_t left = ReadHostMemory().available_bytes - arena_layout_.bytes();
    return std::clamp<int64_t>(left / 4, 0, kLargestAutoCacheRam);
  }

  BatchSchedulerOptions SchedulerOptions(const CacheShape& cache) const {
    return {.max_batch_tokens = cache.max_batch_tokens,
            .micro_batch_tokens = cache.micro_batch_tokens,
            .max_running = cache.num_slots,
            .max_queued = options_.max_queued,
            .vocab_size = model_.vocab_size,
            .slots = {.num_slots = cache.num_slots,
                      .num_blocks = cache.num_blocks,
                      .block_tokens = kKvBlockTokens,
                      .window = model_.sliding_window(),
                      .ring_tokens = cache.ring_blocks * kKvBlockTokens,
                      .states = model_.keeps_states(),
                      .num_host_blocks = cache.num_host_blocks,
                      .num_host_states = cache.num_host_states},
            .resume_patience = options_.resume ? options_.resume_patience : absl::ZeroDuration()};
  }

  // What this host can do at most: what shares are taken of.
  HostPeaks ProbePeaks(ThreadPool& pool) const {
    if (AllByHand()) return {};
    // The experts themselves are read: a small model's stay in the cache, and a large one's are several times as large.
    const absl::StatusOr<CpuPeaks> measured =
        MeasureCpuPeaks(pool, IsaNamed(options_.isa), {.buffer_bytes = kCopyProbeBytes, .memory = store_->arena().bytes()});
    if (!measured.ok()) {
      spdlog::warn("the host's peaks could not be measured: {}", measured.status().ToString());
      return {};
    }
    return {.read_bytes_per_second = measured->read_bytes_per_second, .int8_ops_per_second = measured->int8_ops_per_second};
  }

  bool AllByHand() const { return options_.host_read_bytes_per_second > 0 && options_.host_flops_per_second > 0; }
  // `rates` of the host, where the flags do not name others.
  ExpertRates UnlessByHand(ExpertRates rates) const {
    if (options_.host_read_bytes_per_second > 0) rates.read_bytes_per_second = options_.host_read_bytes_per_second;
    if (options_.host_flops_per_second > 0) rates.flops_per_second = options_.host_flops_per_second;
    if (options_.host_read_bytes_per_second > 0 || options_.host_flops_per_second > 0) rates.flops_at_rows = {};
    return rates;
  }
  // From here on other hosts may compute a share of the experts.
  absl::Status OpenToExpertHosts(const HostPeaks& peaks) {
    const uint64_t fingerprint = FingerprintOf(file_);
    const FirstWords words = {.fingerprint = fingerprint,
                              .num_layers = model_.num_layers,
                              .shape = {.n_embd = model_.n_embd,
                                        .max_rows = kMaxExchangeRows,
                                        .max_entries = kMaxExchangeRows * model_.router.top_k,
                                        .max_experts = model_.router.num_experts}};
    ASSIGN_OR_RETURN(const DivisionMode mode, ParseDivisionMode(options_.divide_experts));
    ASSIGN_OR_RETURN(expert_hosts_, ExpertHosts::Create({.words = words,
                                                         .kernels = KernelsOf(engine_->name()),
                                                         .machine = MachineId(),
                                                         .certificates = identity_ == nullptr ? "" : options_.cluster_certs,
                                                         .memory_bytes_per_second = peaks.read_bytes_per_second,
                                                         .silence = options_.heartbeat_timeout}));
    divided_ = std::make_unique<DividedEngine>(store_.get(), engine_.get(), expert_hosts_.get(), mode);
    expert_host_calls_ = std::make_unique<ExpertHostCalls>(store_.get(), expert_hosts_.get(), fingerprint, ModelHeaderOf(file_));
    return absl::OkStatus();
  }
  // Where workers that share no memory with this process ask for experts.
  absl::StatusOr<ExpertDataPlace> StartExpertData() {
    ExpertDataPlace place = {.unix_path = cluster_acceptor_->address().unix_path + kExpertSocketSuffix};
    std::vector<std::unique_ptr<DataListener>> listeners;
    ASSIGN_OR_RETURN(const ListenAddress local, ParseListenAddress("unix:" + place.unix_path, 0));
    ASSIGN_OR_RETURN(listeners.emplace_back(), DataListener::Listen(local, {}));
    if (remote_acceptor_ != nullptr) {
      ListenAddress remote = remote_acceptor_->address();
      remote.port = static_cast<int>(options_.cluster_data_port);
      ASSIGN_OR_RETURN(
          listeners.emplace_back(),
          DataListener::Listen(remote, {.folder = options_.cluster_certs, .peer = NodeRole::kWorker, .or_coordinator = true}));
      place.port = listeners.back()->address().port;
    }
    const ExpertDataServer::Options options = {
        .words = {.fingerprint = FingerprintOf(file_),
                  .num_layers = model_.num_layers,
                  .shape = ShapeOfDataConnection(controller_->mailbox_shape())},
        .max_connections = kExpertConnections * static_cast<int>(options_.placement.num_workers)};
    ASSIGN_OR_RETURN(expert_data_, ExpertDataServer::Start(std::move(listeners), options, store_.get(), exchange_.get()));
    return place;
  }
  // The workers are there and nothing runs yet: what an earlier start kept, or a probe. Without rates serving goes on with a
  // guess.
  void FindRates(const std::vector<RegisteredWorker>& workers) {
    if (AllByHand()) return;
    std::vector<RatedWorker> rated;
    std::vector<ProbedWorker> probed;
    for (const RegisteredWorker& worker : workers) {
      const v1::WorkerInfo& info = worker.info;
      const bool has_slots = info.expert_slots() > 0;
      rated.push_back({.device = info.device(),
                       .transport = info.expert_transport(),
                       .has_slots = has_slots,
                       .in_place = info.experts_in_place()});
      probed.push_back({.id = WorkerId(static_cast<int32_t>(info.worker_id())),
                        .incarnation = worker.incarnation,
                        .address = worker.address,
                        .has_slots = has_slots,
                        .shares_memory = info.expert_transport() == "shm",
                        .identity = identity_.get(),
                        .own = RatesOf(info)});
    }
    const std::string directory = RatesDirectory(), key = RatesKey(engine_->name(), store_->layout(), rated);
    absl::StatusOr<MachineRates> rates = NotFound("--probe");
    if (!options_.probe) rates = ReadRates(directory, key, absl::Now());
    const bool kept = rates.ok() && rates->workers.size() == workers.size();
    if (!kept) {
      if (absl::IsDataLoss(rates.status())) spdlog::warn("rates are measured anew: {}", rates.status().ToString());
      rates = ProbeRates(*ops_, *store_, probed, ProbeLinkOverGrpc, ProbeMessagesOverGrpc);
      if (!rates.ok()) {
        spdlog::warn("this machine's rates could not be measured: {}", rates.status().ToString());
        return;
      }
      absl::Status keep = absl::OkStatus();
      if (!rates->disturbed.empty() && !options_.keep_rates) keep = FailedPrecondition("%s", rates->disturbed);
      if (keep.ok()) keep = WriteRates(directory, key, *rates);
      if (!keep.ok()) spdlog::warn("the rates are used, but not kept for the next start: {}", std::string(keep.message()));
    }
    rates->host = UnlessByHand(rates->host);
    rates->host_beside_links = UnlessByHand(rates->host_beside_links);
    std::vector<double> links, device_flops;
    for (const WorkerRates& worker : rates->workers) {
      links.push_back(worker.link.Planned());
      device_flops.push_back(kGpuProductShare * worker.experts.flops_per_second);
    }
    exchange_->SetRates({.host = rates->host_beside_links}, links, device_flops);
    divided_->SetRates({.host = rates->host_beside_links});
    // What was given by hand stays as it was given.
    const bool by_hand = options_.host_read_bytes_per_second > 0 || options_.host_flops_per_second > 0;
    if (!by_hand) engine_->SetRates(rates->host_beside_links);
    rates_file_ = {directory, key};
    spdlog::info("this host computes experts at {:.1f} GB/s and {:.0f} GFLOP/s, {:.1f} and {:.0f} beside the links ({})",
                 rates->host.read_bytes_per_second / kGiga, rates->host.flops_per_second / kGiga,
                 rates->host_beside_links.read_bytes_per_second / kGiga, rates->host_beside_links.flops_per_second / kGiga,
                 kept ? "kept from an earlier start" : "measured");
    const std::lock_guard lock(info_mutex_);
    rates_ = *rates;
    rates_kept_ = kept;
  }

  // The next start measures anew where steps have shown that this one's rates were not true: other programs that were at work
  // during the measurement may leave no trace in processor time. After the controller's end.
  void ForgetContradictedRates() const {
    if (rates_file_.key.empty() || options_.keep_rates) return;
    v1::GetServerInfoResponse info;
    for (const RegisteredWorker& worker : controller_->Workers()) *info.add_workers() = worker.info;
    {
      const std::lock_guard lock(info_mutex_);
      AddCorrections(load_info_, info);
    }
    const std::string contradiction = Contradiction(info);
    if (contradiction.empty() || !RemoveRates(rates_file_.directory, rates_file_.key)) return;
    spdlog::info("the next start measures this machine's rates anew: {}", contradiction);
  }

  // Where workers come in: those of this host by a Unix socket, those of others by TLS.
  absl::Status StartClusterPlane() {
    std::string socket = options_.cluster_socket;
    if (socket.empty()) {
      ASSIGN_OR_RETURN(own_folder_, TemporaryFolder::CreateForSockets());
      socket = (own_folder_->path() / "cluster").string();
    }
    ASSIGN_OR_RETURN(const ListenAddress local, ParseListenAddress("unix:" + socket, 0));
    ASSIGN_OR_RETURN(cluster_acceptor_, Acceptor::Listen(local, kClusterConnections));
    grpc::ServerBuilder builder;
    cluster_acceptor_->AddTo(builder, grpc::InsecureServerCredentials());
    if (!options_.cluster_listen.empty()) {
      ASSIGN_OR_RETURN(const ListenAddress remote, ParseListenAddress(options_.cluster_listen, kClusterPort));
      ASSIGN_OR_RETURN(remote_acceptor_, Acceptor::Listen(remote, kClusterConnections));
      remote_acceptor_->AddTo(builder, identity_->ForServer(/*admits_strangers=*/true));
      spdlog::info("workers of other hosts: --coordinator {}", remote_acceptor_->address().ToString());
    }
    // Workers ask whether this host is still there.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kClusterStreams);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.RegisterService(cluster_service_.get());
    if (identity_ != nullptr) {
      enrollment_ = std::make_unique<EnrollmentService>(options_.cluster_certs);
      builder.RegisterService(enrollment_.get());
      ASSIGN_OR_RETURN(keeper_, CertificateKeeper::Start(options_.cluster_certs, [this](const std::string& request_pem) {
                         return IssueNodeCertificate(options_.cluster_certs, request_pem, NodeRole::kCoordinator);
                       }));
    }
    RETURN_IF_ERROR(CheckServerThreadsCanStart());
    cluster_server_ = builder.BuildAndStart();
    if (cluster_server_ == nullptr) return Internal("the cluster's server does not start");
    RETURN_IF_ERROR(cluster_acceptor_->Start());
    return remote_acceptor_ != nullptr ? remote_acceptor_->Start() : absl::OkStatus();
  }

  // What one client, or all of them, may take of this process.
  static void BoundClients(grpc::ServerBuilder& builder) {
    grpc::ResourceQuota quota("api");
    quota.Resize(kClientBytes);
    builder.SetResourceQuota(quota);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kClientStreams);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleConnectionMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    // A compressed message would count by what it was before it is unpacked.
    builder.AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
    // What a call may send before its message is read: gRPC would give quick clients more.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kUnreadBytes);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  }

  // gRPC reads the file again and again.
  static absl::StatusOr<std::string> ReadWatched(const char* flag, const std::string& path) {
    const absl::StatusOr<std::string> text = ReadSmallFile(path);
    if (!text.ok()) return Annotate(text.status(), flag);
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error)) return text;
    return InvalidArgument("%s: '%s' is not a regular file", flag, path);
  }

  absl::Status StartPublicDoor() {
    ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(options_.listen, 0));
    if (!listen.loopback && options_.tls_cert.empty()) {
      spdlog::warn(
          "listening on {}: the connections are not encrypted{}", listen.ToString(),
          options_.api_keys.empty() ? " and anybody who reaches it may use it" : "; --tls-cert and --tls-key encrypt them");
    }
    grpc::ServerBuilder builder;
    ASSIGN_OR_RETURN(acceptor_, Acceptor::Listen(listen, {}));
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (!options_.tls_cert.empty()) {
      ASSIGN_OR_RETURN(const std::string certificate, ReadWatched("--tls-cert", options_.tls_cert));
      ASSIGN_OR_RETURN(const std::string key, ReadWatched("--tls-key", options_.tls_key));
      RETURN_IF_ERROR(Annotate(CheckCertificatePair(certificate, key), "--tls-cert, --tls-key"));
      grpc::experimental::TlsServerCredentialsOptions tls(std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          options_.tls_key, options_.tls_cert, kCertificateRefreshSeconds));
      tls.watch_identity_key_cert_pairs();
      tls.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
      credentials = grpc::experimental::TlsServerCredentials(tls);
    }
    acceptor_->AddTo(builder, credentials);
    if (!options_.api_socket.empty()) {
      ASSIGN_OR_RETURN(const ListenAddress local, ParseListenAddress("unix:" + options_.api_socket, 0));
      ASSIGN_OR_RETURN(local_acceptor_, Acceptor::Listen(local, {}));
      local_acceptor_->AddTo(builder, grpc::InsecureServerCredentials());
    }
    BoundClients(builder);
    // Clients ask whether this host is still there while they wait for a long prefill (cli/client.cc).
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.SetMaxReceiveMessageSize(kMaxPublicMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.RegisterService(ferry_service_.get());
    builder.RegisterService(vocabulary_service_.get());
    builder.RegisterService(vllm_service_.get());
    builder.RegisterService(activity_service_.get());
    builder.RegisterService(health_service_.get());
    reflection_service_ = std::make_unique<ReflectionService>(
        reads_.get(), std::vector<std::string>{v1::Ferry::service_full_name(), v1::Activity::service_full_name(),
                                               v1::Vocabulary::service_full_name(), vllm::VllmEngine::service_full_name(),
                                               health::Health::service_full_name(), "grpc.reflection.v1alpha.ServerReflection"});
    builder.RegisterService(reflection_service_.get());
    RETURN_IF_ERROR(CheckServerThreadsCanStart());
    grpc_server_ = builder.BuildAndStart();
    if (grpc_server_ == nullptr) return Internal("the API's server does not start");
    port_ = acceptor_->address().port;
    address_ = acceptor_->address().ToString();
    RETURN_IF_ERROR(acceptor_->Start());
    return local_acceptor_ != nullptr ? local_acceptor_->Start() : absl::OkStatus();
  }

  v1::GetServerInfoResponse ServerInfo() const {
    v1::GetServerInfoResponse info;
    info.set_version(kVersion);
    info.set_state(controller_->state());
    info.set_uptime_seconds(absl::ToDoubleSeconds(Clock::Real()->Now() - started_));
    for (RegisteredWorker& worker : controller_->Workers()) *info.add_workers() = std::move(worker.info);
    AddStats(loop_->stats(), info);
    info.set_max_parallel(options_.placement.parallel);
    info.set_resident_bytes(ResidentBytes());
    info.set_pid(getpid());
    const std::lock_guard lock(info_mutex_);
    AddLoad(load_info_, info);
    AddRates(rates_, rates_kept_, info);
    AddCorrections(load_info_, info);
    return info;
  }

  // In order of construction: each may use those above it.
  const CoordinatorOptions options_;
  const GgufFile file_;
  const ModelConfig model_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const absl::Time started_ = Clock::Real()->Now();
  std::unique_ptr<NodeIdentity> identity_;  // null: no workers of other hosts
  ArenaLayout arena_layout_;
  std::unique_ptr<TraceWriter> trace_;  // null: no trace is written
  mutable std::mutex info_mutex_;
  LoadInfo load_info_;  // guarded by info_mutex_, as what follows
  MachineRates rates_;
  bool rates_kept_ = false;
  struct {
    std::string directory, key;
  } rates_file_;  // of the controller's thread, and once that has ended; empty: no rates were measured
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<ExpertEngine> engine_;
  std::unique_ptr<ExpertMisses> misses_;
  std::unique_ptr<ExpertHosts> expert_hosts_;
  std::unique_ptr<DividedEngine> divided_;
  std::unique_ptr<ExpertHostCalls> expert_host_calls_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::unique_ptr<MessageReads> reads_;
  std::unique_ptr<HealthService> health_service_;
  std::unique_ptr<GenerationLoop> loop_;
  std::unique_ptr<ClusterController> controller_;
  std::unique_ptr<ClusterService> cluster_service_;
  std::unique_ptr<ApiKeys> keys_;                  // null: nobody needs one
  std::unique_ptr<EnrollmentService> enrollment_;  // null, as the next, without workers of other hosts
  std::unique_ptr<CertificateKeeper> keeper_;
  std::unique_ptr<FerryService> ferry_service_;
  std::unique_ptr<VocabularyService> vocabulary_service_;
  std::unique_ptr<VllmService> vllm_service_;
  std::unique_ptr<ActivityService> activity_service_;
  std::unique_ptr<ReflectionService> reflection_service_;
  std::unique_ptr<TextCalls> texts_;       // its tasks use all of the above
  std::unique_ptr<TaskPool> expert_pool_;  // as those of this
  std::unique_ptr<ExpertDataServer> expert_data_;
  std::unique_ptr<grpc::Server> grpc_server_, cluster_server_;
  std::unique_ptr<Acceptor> acceptor_, cluster_acceptor_;
  std::unique_ptr<Acceptor> local_acceptor_;     // null without --api-socket
  std::unique_ptr<Acceptor> remote_acceptor_;    // null without workers of other hosts
  std::unique_ptr<TemporaryFolder> own_folder_;  // of the cluster's socket; null: it was said where
  std::string address_;
  int port_ = 0;
  bool drained_ = false;
  absl::Status drain_status_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const CoordinatorOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(options.model));
  ASSIGN_OR_RETURN(ModelConfig model, ModelConfig::FromGguf(file));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromGguf(file));
  if (tokenizer->vocab_size() > model.vocab_size) {
    return InvalidArgument("the tokenizer has %d tokens, the model's output %d", tokenizer->vocab_size(), model.vocab_size);
  }
  auto server = std::make_unique<ServerImpl>(options, std::move(file), std::move(model), std::move(tokenizer));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace ferry
