#include "expert_host/expert_host_process.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/grpc_status.h"
#include "common/host_memory.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/model/model_header.h"
#include "common/repeating_thread.h"
#include "common/rpc/certificate_keeper.h"
#include "common/rpc/channels.h"
#include "common/rpc/join_cluster.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_pool.h"
#include "common/tls/data_connection.h"
#include "coordinator/cluster/model_fingerprint.h"
#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/load_reporter.h"
#include "expert_host/data_server.h"
#include "expert_host/record_fetcher.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "kernels/expert_rates.h"

namespace ferry {
namespace {

constexpr absl::Duration kOfferTimeout = absl::Seconds(5);
constexpr absl::Duration kOfferPause = absl::Seconds(1);
constexpr absl::Duration kFirstOfferPause = absl::Milliseconds(300);
constexpr int64_t kSmallestReserve = int64_t{1} << 30;  // of memory, for everything but records
constexpr int64_t kLargestExchange = int64_t{1} << 24;  // rows or entries: more than any coordinator asks for

struct Addresses {
  ListenAddress coordinator, listen;
  std::unique_ptr<NodeIdentity> identity;  // null where both are Unix sockets
};
absl::StatusOr<Addresses> AddressesOf(const ExpertHostOptions& options) {
  Addresses addresses;
  absl::StatusOr<ListenAddress> coordinator = ParseListenAddress(options.coordinator, kClusterPort);
  if (!coordinator.ok()) return Annotate(coordinator.status(), "--coordinator");
  addresses.coordinator = *std::move(coordinator);
  const bool local = !addresses.coordinator.unix_path.empty();
  if (!options.listen.empty()) {
    absl::StatusOr<ListenAddress> listen = ParseListenAddress(options.listen, 0);
    if (!listen.ok()) return Annotate(listen.status(), "--listen");
    addresses.listen = *std::move(listen);
  } else if (local) {
    const std::filesystem::path folder = std::filesystem::path(addresses.coordinator.unix_path).parent_path();
    addresses.listen = {.loopback = true, .unix_path = (folder / absl::StrFormat("experts-%d", getpid())).string()};
  } else {
    ASSIGN_OR_RETURN(const std::string host, LocalHostTowards(addresses.coordinator));
    addresses.listen = {.host = host, .port = 0};
  }
  if (!local || addresses.listen.unix_path.empty()) {
    ASSIGN_OR_RETURN(addresses.identity, NodeIdentity::Open(options.cluster_certs));
  }
  return addresses;
}

// The address that the coordinator is told: on every interface, that of the one towards it.
absl::StatusOr<std::string> ToldAddress(const ListenAddress& bound, const ListenAddress& coordinator) {
  if (!bound.any || !coordinator.unix_path.empty()) return bound.ToString();
  ASSIGN_OR_RETURN(const std::string host, LocalHostTowards(coordinator));
  return absl::StrFormat("%s:%d", host, bound.port);
}

absl::StatusOr<std::unique_ptr<CertificateKeeper>> KeepCertificate(const Addresses& addresses,
                                                                   std::shared_ptr<grpc::Channel> channel) {
  if (addresses.identity == nullptr || !addresses.coordinator.unix_path.empty()) return nullptr;
  return CertificateKeeper::Start(addresses.identity->folder(), [channel = std::move(channel)](const std::string& request_pem) {
    return RenewCertificate(channel, request_pem);
  });
}

uint64_t RandomIncarnation() {
  std::random_device random;
  uint64_t value = 0;
  while (value == 0) value = uint64_t{random()} << 32 | random();
  return value;
}

// What this host offers, again and again; the loading and the offering thread share it.
class Offer {
 public:
  Offer(internal::v1::Cluster::StubInterface* cluster, absl::Duration patience) : cluster_(*cluster), patience_(patience) {}

  void Change(const std::function<void(internal::v1::OfferExpertsRequest&)>& change) {
    const std::lock_guard lock(mutex_);
    change(request_);
  }

  // The first offers, until one is answered. Errors that no further try mends, Unavailable after the patience, Cancelled.
  absl::StatusOr<internal::v1::OfferExpertsResponse> Introduce(const std::function<bool()>& cancelled) {
    std::string said;
    Stopwatch silent;
    while (true) {
      absl::StatusOr<internal::v1::OfferExpertsResponse> answer = Make(/*wait_for_connection=*/false);
      if (answer.ok()) return answer;
      const absl::Status& status = answer.status();
      const bool loads = absl::IsUnavailable(status) && status.message().find("loading") != absl::string_view::npos;
      if (loads) silent.Restart();
      const bool worth_it = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
      if (!worth_it || silent.Elapsed() > patience_) return Annotate(status, "OfferExperts");
      if (const std::string now = Escaped(std::string(status.message())); now != std::exchange(said, now)) {
        spdlog::info("waiting for the coordinator: {}", now);
      }
      if (cancelled()) return Cancelled("asked to end");
      absl::SleepFor(kFirstOfferPause);
    }
  }

  // One more offer; a failure that lasts is kept for failed().
  void Repeat() {
    const absl::StatusOr<internal::v1::OfferExpertsResponse> answer = Make(/*wait_for_connection=*/true);
    const std::lock_guard lock(mutex_);
    if (answer.ok()) {
      since_answer_.Restart();
      if (const std::string state = Escaped(answer->state()); state != std::exchange(state_, state)) {
        spdlog::info("the coordinator says of this host: {}", state);
      }
      return;
    }
    const bool for_good = absl::IsFailedPrecondition(answer.status()) || absl::IsInvalidArgument(answer.status()) ||
                          absl::IsUnauthenticated(answer.status());
    if (for_good || since_answer_.Elapsed() > patience_) failed_.Update(Annotate(answer.status(), "the coordinator is lost"));
  }
  absl::Status failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }
  // Ends an offer that is under way, and makes no other.
  void Stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }

 private:
  // gRPC makes a connection in the threads that wait for a call. One that does not wait fails at once while there is none, and
  // with an offer a second no connection came about in its time.
  absl::StatusOr<internal::v1::OfferExpertsResponse> Make(bool wait_for_connection) {
    internal::v1::OfferExpertsRequest request;
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(kOfferTimeout));
    context.set_wait_for_ready(wait_for_connection);
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return Cancelled("this host ends");
      request = request_;
      call_ = &context;
    }
    internal::v1::OfferExpertsResponse response;
    const absl::Status status = FromGrpcStatus(cluster_.OfferExperts(&context, request, &response));
    const std::lock_guard lock(mutex_);
    call_ = nullptr;
    if (!status.ok()) return status;
    return response;
  }

  internal::v1::Cluster::StubInterface& cluster_;
  const absl::Duration patience_;
  std::mutex mutex_;  // guards what follows
  internal::v1::OfferExpertsRequest request_;
  Stopwatch since_answer_;
  std::string state_;
  absl::Status failed_;
  bool stopped_ = false;
  grpc::ClientContext* call_ = nullptr;  // of the offer under way
};

int64_t MemoryFor(const ExpertHostOptions& options) {
  const int64_t available = ReadHostMemory().available_bytes;
  if (options.memory_bytes > 0) return options.memory_bytes;
  return std::max<int64_t>(0, available - std::max(kSmallestReserve, available / 16));
}

// The file's experts, once it is known to be of the cluster's model. Null: there is no file here.
absl::StatusOr<std::unique_ptr<GgufFile>> OwnFile(const ExpertHostOptions& options, uint64_t fingerprint) {
  if (options.model.empty()) return nullptr;
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(options.model));
  if (const uint64_t own = FingerprintOf(file); own != fingerprint) {
    return FailedPrecondition("-m %s is another model than the coordinator's: its fingerprint is %016x, want %016x",
                              options.model, own, fingerprint);
  }
  return std::make_unique<GgufFile>(std::move(file));
}

absl::Status FillFromFile(const GgufFile& file, const ModelConfig& config, const ArenaLayout& arena, ThreadPool& pool,
                          int64_t layer, std::span<const ExpertStore::RecordToFill> records) {
  ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
  std::mutex mutex;
  absl::Status failed;
  pool.ParallelFor(static_cast<int64_t>(records.size()), [&](int64_t i, int) {
    const absl::Status status = FillExpertRecord(tensors, arena.layer(layer), records[i].expert, records[i].record);
    for (const ExpertPart* part : {&tensors.gate, &tensors.up, &tensors.down}) file.Release(part->Of(records[i].expert));
    const std::lock_guard lock(mutex);
    failed.Update(status);
  });
  RETURN_IF_ERROR(failed);
  return file.CheckUnchanged();
}

absl::StatusOr<ExpertRates> MeasureOwn(Ops& ops, const ExpertStore& store) {
  const ArenaLayout& arena = store.layout();
  const ExpertLayout& first = arena.layer(arena.FirstWithExperts());
  std::vector<const std::byte*> records;
  for (int64_t layer = 0; layer < arena.num_layers(); ++layer) {
    for (int64_t expert = 0; expert < arena.num_experts() && arena.layer(layer) == first; ++expert) {
      if (const auto record = store.Record(layer, expert); record.ok()) records.push_back(record->data());
    }
  }
  return MeasureExperts(ops, first, records, {});
}

std::string BitsOf(const HeldExperts& held, const ArenaLayout& arena) {
  const std::vector<bool>& experts = *held[arena.FirstWithExperts()];
  std::string bits((experts.size() + 7) / 8, '\0');
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i]) bits[i / 8] = static_cast<char>(bits[i / 8] | 1 << (i % 8));
  }
  return bits;
}

absl::StatusOr<HeldExperts> HeldHere(const ExpertHostOptions& options, const ArenaLayout& arena, int64_t place) {
  const int64_t memory = MemoryFor(options);
  HeldExperts held = ChooseHeld(arena, memory, place);
  if (RecordsIn(held) == 0) {
    return ResourceExhausted("%d bytes hold no expert of every layer, of %d bytes together: give --memory", memory,
                             arena.bytes() / arena.num_experts());
  }
  spdlog::info("this host holds {} of {} experts of every layer, {:.2f} GB",
               RecordsIn(held) * arena.num_experts() / arena.num_records(), arena.num_experts(),
               static_cast<double>(BytesOf(arena, held)) / 1e9);
  return held;
}

absl::Status CheckAnswer(const internal::v1::OfferExpertsResponse& answer) {
  if (answer.max_rows() > kLargestExchange || answer.max_entries() > kLargestExchange || answer.model_fingerprint() == 0) {
    return InvalidArgument("the coordinator asks for exchanges of %d rows and %d entries", answer.max_rows(),
                           answer.max_entries());
  }
  return absl::OkStatus();
}

using FillWith = std::function<absl::Status(ThreadPool& pool, int64_t layer, std::span<const ExpertStore::RecordToFill> records)>;

// The store of `held`, whose progress the coordinator is told.
absl::StatusOr<std::unique_ptr<ExpertStore>> LoadRecords(const ArenaLayout& arena, const HeldExperts& held, int num_threads,
                                                         const FillWith& fill, Offer& offer) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = num_threads}));
  LoadReporter report;
  return ExpertStore::LoadHeld(
      arena, held, *pool,
      [&](int64_t layer, std::span<const ExpertStore::RecordToFill> records) { return fill(*pool, layer, records); },
      [&](const LoadProgress& progress) {
        report(progress);
        offer.Change([&](auto& request) {
          request.set_load_progress(static_cast<double>(progress.bytes_done) / static_cast<double>(progress.bytes_total));
        });
      });
}

FirstWords FirstWordsOf(uint64_t incarnation, const internal::v1::OfferExpertsResponse& answer, const ModelDescription& model) {
  return {.incarnation = incarnation,
          .fingerprint = answer.model_fingerprint(),
          .num_layers = model.arena.num_layers(),
          .shape = {.n_embd = model.config.n_embd,
                    .max_rows = static_cast<int64_t>(answer.max_rows()),
                    .max_entries = static_cast<int64_t>(answer.max_entries()),
                    .max_experts = model.arena.num_experts()}};
}

}  // namespace

absl::Status RunExpertHost(const ExpertHostOptions& options, const std::function<bool()>& asked_to_end) {
  const absl::Duration patience = absl::Seconds(options.connect_patience_seconds);
  const uint64_t incarnation = RandomIncarnation();
  ASSIGN_OR_RETURN(const Addresses addresses, AddressesOf(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, CreateHostOps(options.backend));
  ASSIGN_OR_RETURN(std::unique_ptr<DataListener> listener,
                   DataListener::Listen(addresses.listen, {.folder = options.cluster_certs, .peer = NodeRole::kCoordinator}));
  ASSIGN_OR_RETURN(const std::string address, ToldAddress(listener->address(), addresses.coordinator));
  spdlog::info("computing on {}, listening on {}", ops->name(), address);

  // A connection that a pulled cable has silenced is made anew. TCP would go on with it, but after a pause that may be as long as
  // the silence was.
  const std::shared_ptr<grpc::Channel> channel =
      ConnectPeer(addresses.coordinator.ToString(), NodeRole::kCoordinator, addresses.identity.get(),
                  {.keepalive = true, .quick_reconnects = true});
  const std::unique_ptr<internal::v1::Cluster::Stub> cluster = internal::v1::Cluster::NewStub(channel);
  ASSIGN_OR_RETURN(const std::unique_ptr<CertificateKeeper> keeper, KeepCertificate(addresses, channel));
  Offer offer(cluster.get(), patience);
  offer.Change([&](internal::v1::OfferExpertsRequest& request) {
    request.set_incarnation(incarnation);
    request.set_machine(MachineId());
    request.set_address(address);
    request.set_engine(ops->name());
  });
  ASSIGN_OR_RETURN(const internal::v1::OfferExpertsResponse answer, offer.Introduce(asked_to_end));
  RETURN_IF_ERROR(CheckAnswer(answer));
  ASSIGN_OR_RETURN(const ModelDescription model, ModelFromHeader(std::as_bytes(std::span(answer.model()))));
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, OwnFile(options, answer.model_fingerprint()));
  offer.Change([&](auto& request) { request.set_model_fingerprint(answer.model_fingerprint()); });
  ASSIGN_OR_RETURN(const std::unique_ptr<RepeatingThread> offering,
                   RepeatingThread::Start(kOfferPause, [&offer] { offer.Repeat(); }));
  const absl::Cleanup stop = [&offer] { offer.Stop(); };  // before the thread is waited for

  ASSIGN_OR_RETURN(const HeldExperts held, HeldHere(options, model.arena, answer.place()));
  RecordFetcher fetcher(cluster.get(), answer.model_fingerprint(), patience, asked_to_end);
  const auto fill = [&](ThreadPool& pool, int64_t layer, std::span<const ExpertStore::RecordToFill> records) -> absl::Status {
    RETURN_IF_ERROR(offer.failed());
    if (asked_to_end()) return Cancelled("asked to end");
    if (file == nullptr) return fetcher.Fetch(layer, records);
    return FillFromFile(*file, model.config, model.arena, pool, layer, records);
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<ExpertStore> store,
                   LoadRecords(model.arena, held, options.backend.num_threads, fill, offer));
  ASSIGN_OR_RETURN(const ExpertRates rates, MeasureOwn(*ops, *store));
  spdlog::info("loaded in {:.1f} s from {}; computes experts at {:.1f} GB/s and {:.0f} GFLOP/s", store->load_seconds(),
               file != nullptr ? options.model : "the coordinator", rates.read_bytes_per_second / 1e9,
               rates.flops_per_second / 1e9);
  ExpertEngine engine(store.get(), ops.get(), model.config.expert.glu, model.config.n_embd);
  ASSIGN_OR_RETURN(const std::unique_ptr<DataServer> server,
                   DataServer::Start(std::move(listener), FirstWordsOf(incarnation, answer, model), &engine));
  offer.Change([&](auto& request) {
    request.set_held_experts(BitsOf(held, model.arena));
    request.set_read_bytes_per_second(rates.read_bytes_per_second);
    request.set_flops_per_second(rates.flops_per_second);
    request.set_ready(true);
  });
  while (!asked_to_end()) {
    RETURN_IF_ERROR(offer.failed());
    absl::SleepFor(absl::Milliseconds(50));
  }
  spdlog::info("asked to end");
  return absl::OkStatus();
}

}  // namespace ferry
