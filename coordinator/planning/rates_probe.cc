#include "coordinator/planning/rates_probe.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "coordinator/planning/probe_disturbance.h"
#include "ferry/internal/v1/worker.grpc.pb.h"

namespace ferry {
namespace {

constexpr absl::Duration kHostTime = absl::Milliseconds(150);  // of each of the engine's two rates, and of its curve
constexpr absl::Duration kLinksTime = absl::Milliseconds(250);
constexpr absl::Duration kLinksBesideHostTime = absl::Milliseconds(600);  // a little longer than those
constexpr int kMessages = 51;                                             // the median of them counts
constexpr absl::Duration kBetweenMessages = absl::Milliseconds(2);  // as in decode: threads and cores have fallen asleep by then
constexpr absl::Duration kProbePatience =
    absl::Seconds(10);  // more than the time asked for: the engine's threads may have all cores

const ExpertLayout& FirstLayout(const ExpertStore& store) { return store.layout().layer(store.layout().FirstWithExperts()); }

// The records of all layers that are laid out as the first that has experts.
std::vector<const std::byte*> RecordsOf(const ExpertStore& store) {
  std::vector<const std::byte*> records;
  for (int64_t layer = 0; layer < store.layout().num_layers(); ++layer) {
    if (store.layout().layer(layer) != FirstLayout(store)) continue;
    for (int64_t expert = 0; expert < store.layout().num_experts(); ++expert) {
      if (const auto record = store.Record(layer, expert); record.ok()) records.push_back(record->data());
    }
  }
  return records;
}

// The links of all workers with slots at once; `meanwhile` runs beside them. One rate a worker.
absl::StatusOr<std::vector<double>> AllLinks(std::span<const ProbedWorker> workers, absl::Duration time,
                                             const LinkProbe& probe_link, const std::function<void()>& meanwhile) {
  std::vector<absl::StatusOr<double>> measured(workers.size(), 0.0);
  std::vector<std::thread> threads;
  absl::Status status;
  for (size_t i = 0; i < workers.size() && status.ok(); ++i) {
    if (!workers[i].has_slots) continue;
    absl::StatusOr<std::thread> thread = StartThread([&, i] { measured[i] = probe_link(workers[i], time); });
    status = thread.status();
    if (thread.ok()) threads.push_back(*std::move(thread));
  }
  if (status.ok()) meanwhile();
  for (std::thread& thread : threads) thread.join();
  RETURN_IF_ERROR(status);
  std::vector<double> rates;
  for (size_t i = 0; i < workers.size(); ++i) {
    RETURN_IF_ERROR(Annotate(measured[i].status(), absl::StrFormat("the link of worker %d", workers[i].id.value())));
    rates.push_back(*measured[i]);
  }
  return rates;
}

}  // namespace

absl::StatusOr<double> ProbeLinkOverGrpc(const ProbedWorker& worker, absl::Duration time) {
  const std::unique_ptr<internal::v1::Worker::Stub> stub =
      internal::v1::Worker::NewStub(ConnectPeer(worker.address, NodeRole::kWorker, worker.identity, {}));
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(time + kProbePatience));
  internal::v1::ProbeLinkRequest request;
  request.set_incarnation(worker.incarnation.value());
  request.set_seconds(absl::ToDoubleSeconds(time));
  internal::v1::ProbeLinkResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub->ProbeLink(&context, request, &response)));
  if (response.bytes() == 0) return 0.0;
  if (!(response.seconds() > 0)) return Internal("%d bytes came in %g seconds", response.bytes(), response.seconds());
  return static_cast<double>(response.bytes()) / response.seconds();
}

absl::StatusOr<double> ProbeMessagesOverGrpc(const ProbedWorker& worker) {
  const std::unique_ptr<internal::v1::Worker::Stub> stub =
      internal::v1::Worker::NewStub(ConnectPeer(worker.address, NodeRole::kWorker, worker.identity, {}));
  std::vector<double> seconds;
  for (int i = 0; i < kMessages; ++i) {  // the first connects
    absl::SleepFor(kBetweenMessages);
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(kProbePatience));
    internal::v1::PingRequest request;
    request.set_incarnation(worker.incarnation.value());
    internal::v1::PingResponse response;
    const Stopwatch asked;
    RETURN_IF_ERROR(FromGrpcStatus(stub->Ping(&context, request, &response)));
    seconds.push_back(asked.Seconds());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kMessages / 2, seconds.end());
  return seconds[kMessages / 2];
}

absl::StatusOr<MachineRates> ProbeRates(Ops& engine, const ExpertStore& store, std::span<const ProbedWorker> workers,
                                        const LinkProbe& probe_link, const MessageProbe& probe_messages) {
  const std::vector<const std::byte*> records = RecordsOf(store);
  const auto measure_host = [&] {
    return MeasureExperts(engine, FirstLayout(store), records, {.time = kHostTime, .curve = true});
  };
  MachineRates rates;
  const absl::StatusOr<ProcessorTime> before = ReadProcessorTime();
  const Stopwatch measuring;
  ASSIGN_OR_RETURN(rates.host, measure_host());
  ASSIGN_OR_RETURN(const ExpertRates again, measure_host());
  // Only while the workers had nothing to do: they are other processes too.
  const absl::StatusOr<ProcessorTime> after = ReadProcessorTime();
  rates.disturbed = Disagreement(rates.host, again);
  if (rates.disturbed.empty() && before.ok() && after.ok()) {
    rates.disturbed = OthersAtWork(*before, *after, measuring.Seconds());
  }
  rates.host_beside_links = rates.host;
  for (const ProbedWorker& worker : workers) {
    rates.workers.push_back(worker.own);
    if (worker.shares_memory) continue;
    const absl::StatusOr<double> seconds = probe_messages(worker);
    RETURN_IF_ERROR(Annotate(seconds.status(), absl::StrFormat("messages to worker %d", worker.id.value())));
    rates.workers.back().message_seconds = *seconds;
  }
  rates.measured = absl::Now();
  if (std::none_of(workers.begin(), workers.end(), [](const ProbedWorker& worker) { return worker.has_slots; })) return rates;

  ASSIGN_OR_RETURN(const std::vector<double> together, AllLinks(workers, kLinksTime, probe_link, [] {}));
  absl::StatusOr<ExpertRates> beside = absl::UnknownError("");
  ASSIGN_OR_RETURN(const std::vector<double> beside_host,
                   AllLinks(workers, kLinksBesideHostTime, probe_link, [&] { beside = measure_host(); }));
  RETURN_IF_ERROR(beside.status());
  rates.host_beside_links = *beside;
  for (size_t i = 0; i < workers.size(); ++i) {
    rates.workers[i].link.together = together[i];
    rates.workers[i].link.beside_host = beside_host[i];
  }
  return rates;
}

}  // namespace ferry
