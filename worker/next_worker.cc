#include "worker/next_worker.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/thread_limit.h"
#include "worker/activation_ring.h"
#include "worker/device_rows.h"
#include "worker/stage_link_grpc.h"
#include "worker/stage_link_shm.h"

namespace ferry {
namespace {

constexpr size_t kMaxWhyBytes = 200;    // of a reason that goes on to the coordinator
constexpr uint64_t kMeasuringStep = 0;  // before the epoch's first
constexpr int kTimedMessages = 5;       // of each size and way, behind one that warms up
constexpr int kMaxMeasuredMessages = 256;
constexpr double kMaxMeasuringSeconds = 5;
constexpr absl::Duration kMeasuringPatience = absl::Seconds(2);
constexpr absl::Duration kAnswerPatience = absl::Milliseconds(500);  // of the next worker, after the measurement's time
// For a way that nobody asked for by name. The epoch has to begin in 10 s, and its workers begin it one after the other.
constexpr absl::Duration kAutoPatience = absl::Seconds(8), kLongestAutoPatience = absl::Seconds(3);

std::string ShortReason(const absl::Status& status) { return std::string(status.message()).substr(0, kMaxWhyBytes); }

absl::StatusOr<std::unique_ptr<ActivationRing>> MapOffered(const internal::v1::ShareActivationsResponse& offer, int64_t n_embd,
                                                           Deadline deadline) {
  ASSIGN_OR_RETURN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket(), offer.key(), deadline));
  if (descriptors.size() != 1) return Internal("the next worker handed out %d descriptors, want 1", descriptors.size());
  return ActivationRing::Map(descriptors[0].Release(),
                             {.n_embd = n_embd, .rows_per_slot = offer.rows_per_slot(), .num_slots = offer.num_slots()});
}

v1::HiddenStatesLink LinkOf(const char* way, const std::string& why) {
  v1::HiddenStatesLink link;
  link.set_way(way);
  link.set_why(why);
  return link;
}

}  // namespace

struct NextWorker::Call {
  internal::v1::Worker::Stub& stub;
  std::shared_ptr<grpc::Channel> channel;
  Incarnation next;
  uint64_t epoch = 0;
  const StageLinkOptions& options;
  StepRunner* runner = nullptr;
  Deadline deadline;

  // `method` of the stub with a request that names the epoch and the worker.
  template <typename Response, typename Request>
  absl::StatusOr<Response> Ask(grpc::Status (internal::v1::Worker::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                  Response*),
                               Request request, Deadline until) const {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(until));
    request.set_epoch(epoch);
    request.set_incarnation(next.value());
    Response response;
    RETURN_IF_ERROR(FromGrpcStatus((stub.*method)(&context, request, &response)));
    return response;
  }
  absl::StatusOr<internal::v1::ShareActivationsResponse> Share(const std::string& machine) const {
    internal::v1::ShareActivationsRequest request;
    request.set_machine(machine);
    return Ask(&internal::v1::Worker::Stub::ShareActivations, std::move(request), deadline);
  }
  // An empty key asks only whether the next worker would join.
  absl::Status AskToJoin(const std::string& key, Deadline until) const {
    internal::v1::JoinDevicesRequest request;
    request.set_key(key);
    request.set_device(options.peers->device());
    request.set_machine(MachineId());
    request.set_network(options.peers_over_network);
    return Ask(&internal::v1::Worker::Stub::JoinDevices, std::move(request), until).status();
  }
  // Both join before this returns.
  absl::StatusOr<std::unique_ptr<DevicePeer>> Join(Deadline until) const {
    if (options.peers == nullptr) return FailedPrecondition("%s", options.no_peers_because);
    RETURN_IF_ERROR(AskToJoin("", until));
    ASSIGN_OR_RETURN(const std::string key, options.peers->MakeKey());
    ASSIGN_OR_RETURN(std::unique_ptr<DevicePeer> peer, options.peers->Join(key, /*end=*/0));
    RETURN_IF_ERROR(AskToJoin(key, until));
    RETURN_IF_ERROR(peer->AwaitReady(until, nullptr));
    return peer;
  }
};

absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::Connect(const std::string& address, Incarnation next, uint64_t epoch,
                                                                    const StageLinkOptions& options, StepRunner* runner,
                                                                    Deadline deadline) {
  std::shared_ptr<grpc::Channel> channel =
      ConnectPeer(address, NodeRole::kWorker, options.identity, {.keepalive = true, .quick_reconnects = true});
  if (!channel->WaitForConnected(RpcDeadline(deadline))) {
    return Unavailable("the next worker does not answer at %s", address);
  }
  const std::unique_ptr<internal::v1::Worker::Stub> stub = internal::v1::Worker::NewStub(channel);
  const Call call = {.stub = *stub,
                     .channel = std::move(channel),
                     .next = next,
                     .epoch = epoch,
                     .options = options,
                     .runner = runner,
                     .deadline = deadline};
  ASSIGN_OR_RETURN(std::unique_ptr<ActivationSink> sink, ConnectByHost(call));
  if (options.transport == Transport::kNccl) return AddDevices(call, std::move(sink));
  const bool may_add = options.transport == Transport::kAuto && options.peers != nullptr && runner != nullptr;
  return may_add && link().way() == "shm" ? AddIfFaster(call, std::move(sink)) : std::move(sink);
}

// By memory or by messages.
absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::ConnectByHost(const Call& call) {
  const bool by_name = call.options.transport == Transport::kShm;
  if (call.options.transport == Transport::kGrpc) {
    RETURN_IF_ERROR(call.Share(/*machine=*/"").status());
    SetLink(LinkOf("grpc", "--transport grpc"));
  } else if (call.options.share_memory || by_name) {
    ASSIGN_OR_RETURN(const internal::v1::ShareActivationsResponse offer, call.Share(MachineId()));
    if (!offer.socket().empty()) {
      absl::StatusOr<std::unique_ptr<ActivationRing>> ring = MapOffered(offer, call.options.n_embd, call.deadline);
      if (ring.ok()) {
        SetLink(LinkOf("shm", by_name                         ? "--transport shm"
                              : call.options.peers == nullptr ? call.options.no_peers_because
                                                              : "both workers are on one host"));
        return MakeRingSink(*std::move(ring), call.options.ops);
      }
      if (by_name) return ring.status();
      spdlog::warn("hidden states go to the next worker by messages: {}", ring.status().ToString());
      RETURN_IF_ERROR(call.Share(/*machine=*/"").status());
    } else if (by_name) {
      return FailedPrecondition(
          "--transport shm, but the next worker shares no memory with this one: it is on another host or was told not to");
    }
    SetLink(LinkOf("grpc", "the next worker shares no memory with this one"));
  } else {
    SetLink(LinkOf("grpc", "this worker shares no memory"));
  }
  return MakeGrpcSink(call.channel, call.next, call.options.n_embd, call.epoch);
}

// For every message.
absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::AddDevices(const Call& call, std::unique_ptr<ActivationSink> sink) {
  absl::StatusOr<std::unique_ptr<DevicePeer>> peer = call.Join(call.deadline);
  if (!peer.ok()) return Annotate(peer.status(), "--transport nccl");
  SetLink(LinkOf("nccl", "--transport nccl, " + call.options.peers->name()));
  spdlog::info("hidden states go to the next worker over {}", call.options.peers->name());
  return std::make_unique<DeviceSink>(std::move(sink), *std::move(peer), call.options.n_embd, /*min_rows=*/1);
}

// For the messages that are faster from device to device.
absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::AddIfFaster(const Call& call, std::unique_ptr<ActivationSink> sink) {
  const absl::Duration patience = kAutoPatience / std::max(1, call.options.num_workers - 1);
  const Deadline until = std::min(call.deadline, Deadline::In(std::min(patience, kLongestAutoPatience)));
  absl::StatusOr<std::unique_ptr<DevicePeer>> peer = call.Join(until);
  if (!peer.ok()) {
    spdlog::info("hidden states go to the next worker through shared memory: {}", peer.status().ToString());
    SetLink(LinkOf("shm", ShortReason(peer.status())));
    return sink;
  }
  auto devices = std::make_unique<DeviceSink>(std::move(sink), *std::move(peer), call.options.n_embd, kNoMessage);
  if (const absl::Status measured = MeasureOnce(call, *devices); !measured.ok()) {
    // Messages of the measurement may be left in the memory, so new memory is asked for.
    devices.reset();
    spdlog::warn("hidden states go to the next worker through shared memory, since NCCL could not be measured: {}",
                 measured.ToString());
    ASSIGN_OR_RETURN(sink, ConnectByHost(call));
    SetLink(LinkOf(link().way().c_str(), ShortReason(measured)));
    return sink;
  }
  const int64_t from = NcclFromRows(times_);
  devices->set_min_rows(from);
  v1::HiddenStatesLink link = LinkOf(from == kNoMessage            ? "shm"
                                     : from == times_.front().rows ? "nccl"
                                                                   : "shm+nccl",
                                     call.options.peers->name() + ", " + DescribeChoice(times_));
  if (from != kNoMessage) link.set_nccl_from_rows(static_cast<uint32_t>(from));
  for (const LinkTime& time : times_) {
    v1::HiddenStatesTime* const out = link.add_times();
    out->set_rows(static_cast<uint32_t>(time.rows));
    out->set_shm_seconds(absl::ToDoubleSeconds(time.shm));
    out->set_nccl_seconds(absl::ToDoubleSeconds(time.nccl));
    spdlog::info("{} hidden states to the next worker: {:.1f} us through shared memory, {:.1f} us over NCCL", time.rows,
                 absl::ToDoubleMicroseconds(time.shm), absl::ToDoubleMicroseconds(time.nccl));
  }
  spdlog::info("hidden states go to the next worker by {}", link.why());
  SetLink(std::move(link));
  return devices;
}

namespace {

// One message from this device's memory until the next worker has it in its own.
absl::StatusOr<absl::Duration> TimeMessage(Ops& ops, DeviceSink& sink, Tensor rows, bool by_devices, Deadline deadline) {
  sink.set_min_rows(by_devices ? 1 : kNoMessage);
  RETURN_IF_ERROR(ops.Synchronize(deadline));
  const Stopwatch watch;
  RETURN_IF_ERROR(SendDeviceRows(ops, sink, kMeasuringStep, rows, deadline));
  RETURN_IF_ERROR(sink.AwaitDropped(deadline));
  return watch.Elapsed();
}

absl::StatusOr<absl::Duration> MedianTime(Ops& ops, DeviceSink& sink, Tensor rows, bool by_devices, Deadline deadline) {
  RETURN_IF_ERROR(TimeMessage(ops, sink, rows, by_devices, deadline).status());
  std::vector<absl::Duration> times(kTimedMessages);
  for (absl::Duration& time : times) {
    ASSIGN_OR_RETURN(time, TimeMessage(ops, sink, rows, by_devices, deadline));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

absl::StatusOr<std::vector<LinkTime>> MeasureWays(const StageLinkOptions& options, DeviceSink& sink,
                                                  const std::vector<int64_t>& sizes, Deadline deadline) {
  Ops& ops = *options.ops;
  ASSIGN_OR_RETURN(const DeviceBuffer memory, ops.Allocate(sizes.back() * options.n_embd * int64_t{sizeof(float)}));
  const Tensor all(memory.data(), DType::kF32, sizes.back(), options.n_embd);
  std::vector<LinkTime> times;
  for (const int64_t rows : sizes) {
    LinkTime& time = times.emplace_back();
    time.rows = rows;
    ASSIGN_OR_RETURN(time.shm, MedianTime(ops, sink, all.Rows(0, rows), /*by_devices=*/false, deadline));
    ASSIGN_OR_RETURN(time.nccl, MedianTime(ops, sink, all.Rows(0, rows), /*by_devices=*/true, deadline));
  }
  return times;
}

}  // namespace

// The figures of one next worker are kept, so that a later epoch begins sooner.
absl::Status NextWorker::MeasureOnce(const Call& call, DeviceSink& sink) {
  if (measured_with_ == call.next && !times_.empty()) return absl::OkStatus();
  const std::vector<int64_t> sizes = RowsToMeasure(call.options.max_rows);
  const Deadline until = std::min(call.deadline, Deadline::In(kMeasuringPatience));
  internal::v1::MeasureActivationsRequest request;
  request.set_seconds(std::max(0.001, absl::ToDoubleSeconds(until.Remaining())));
  for (const int64_t rows : sizes) {
    for (int i = 0; i < 2 * (1 + kTimedMessages); ++i) request.add_rows(static_cast<uint32_t>(rows));
  }
  absl::Status taken;
  ASSIGN_OR_RETURN(std::thread asking, StartThread([&] {
                     const Deadline answered = Deadline::In(until.Remaining() + kAnswerPatience);
                     taken = call.Ask(&internal::v1::Worker::Stub::MeasureActivations, request, answered).status();
                   }));
  absl::StatusOr<std::vector<LinkTime>> times = Internal("nothing was measured");
  const absl::Status measured = call.runner->RunBeforeSteps(
      /*epoch=*/0,
      [&](ActivationSource*) {
        times = MeasureWays(call.options, sink, sizes, until);
        return times.status();
      },
      until);
  asking.join();
  RETURN_IF_ERROR(taken);
  RETURN_IF_ERROR(measured);
  times_ = *std::move(times);
  measured_with_ = call.next;
  return absl::OkStatus();
}

void NextWorker::SetLink(v1::HiddenStatesLink link) {
  const std::lock_guard lock(mutex_);
  link_ = std::move(link);
}

v1::HiddenStatesLink NextWorker::link() const {
  const std::lock_guard lock(mutex_);
  return link_;
}

// ------------------------------------------------------------------------------------------------------------------ the receiver

absl::StatusOr<internal::v1::ShareActivationsResponse> ActivationSharer::Share(
    const internal::v1::ShareActivationsRequest& request, const StageLinkOptions& options, StepRunner* runner) {
  internal::v1::ShareActivationsResponse response;
  const bool shares = options.share_memory || options.transport == Transport::kShm;
  if (!shares || request.machine() != MachineId()) {
    RETURN_IF_ERROR(runner->ReceiveFrom(request.epoch(), nullptr));
    return response;
  }
  const std::lock_guard lock(mutex_);
  const RingShape shape = RingShapeFor(options.n_embd, options.max_rows);
  ASSIGN_OR_RETURN(std::unique_ptr<ActivationRing> ring, ActivationRing::Create(shape));
  RETURN_IF_ERROR(offer_.Make({ring->fd()}));
  const absl::Status taken = runner->ReceiveFrom(request.epoch(), MakeRingSource(std::move(ring), options.ops));
  if (!taken.ok()) {
    offer_.Withdraw();
    return taken;
  }
  response.set_socket(offer_.socket());
  response.set_key(offer_.key());
  response.set_rows_per_slot(static_cast<uint32_t>(shape.rows_per_slot));
  response.set_num_slots(static_cast<uint32_t>(shape.num_slots));
  return response;
}

absl::Status JoinPreviousDevice(const internal::v1::JoinDevicesRequest& request, const StageLinkOptions& options,
                                StepRunner* runner, Deadline deadline, const std::function<bool()>& cancelled) {
  if (options.transport != Transport::kAuto && options.transport != Transport::kNccl) {
    return FailedPrecondition("the next worker was started with --transport %s", NameOf(options.transport));
  }
  if (options.peers == nullptr) return FailedPrecondition("the next worker: %s", options.no_peers_because);
  if (request.machine() != MachineId()) {
    if (!request.network() || !options.peers_over_network) {
      return absl::FailedPreconditionError(
          "NCCL between hosts is neither encrypted nor authenticated: both workers have to name the interface of a network that "
          "only they can use with --nccl-interface");
    }
  } else if (request.device() == options.peers->device()) {
    return FailedPrecondition("both workers compute on one GPU, %s", options.peers->device());
  }
  if (runner->epoch() != request.epoch()) return Aborted("epoch is %d, want %d", request.epoch(), runner->epoch());
  if (request.key().empty()) return absl::OkStatus();
  if (request.key().size() > DevicePeers::kMaxKeyBytes) {
    return InvalidArgument("key has %d bytes, want at most %d", request.key().size(), DevicePeers::kMaxKeyBytes);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<DevicePeer> peer, options.peers->Join(request.key(), /*end=*/1));
  RETURN_IF_ERROR(peer->AwaitReady(deadline, cancelled));
  return runner->ReceiveFromDevice(request.epoch(), std::move(peer), options.n_embd);
}

absl::Status TakeMeasurement(const internal::v1::MeasureActivationsRequest& request, const StageLinkOptions& options,
                             StepRunner* runner) {
  if (!(request.seconds() > 0 && request.seconds() <= kMaxMeasuringSeconds)) {  // NaN fails as well
    return InvalidArgument("seconds is %g, want above 0 and at most %g", request.seconds(), kMaxMeasuringSeconds);
  }
  if (request.rows_size() < 1 || request.rows_size() > kMaxMeasuredMessages) {
    return InvalidArgument("rows has %d messages, want 1 to %d", request.rows_size(), kMaxMeasuredMessages);
  }
  const auto [least, most] = std::minmax_element(request.rows().begin(), request.rows().end());
  if (*least < 1 || *most > options.max_rows) {
    return InvalidArgument("rows has messages of %d to %d, want 1 to %d", *least, *most, options.max_rows);
  }
  const Deadline until = Deadline::In(absl::Seconds(request.seconds()));
  const auto take = [&](ActivationSource* source) -> absl::Status {
    if (source == nullptr) return absl::FailedPreconditionError("no memory is shared with the previous worker");
    Ops& ops = *options.ops;
    ASSIGN_OR_RETURN(const DeviceBuffer memory, ops.Allocate(int64_t{*most} * options.n_embd * int64_t{sizeof(float)}));
    const Tensor all(memory.data(), DType::kF32, *most, options.n_embd);
    for (const uint32_t rows : request.rows()) {
      RETURN_IF_ERROR(ReceiveDeviceRows(ops, *source, kMeasuringStep, all.Rows(0, rows), until));
    }
    return absl::OkStatus();
  };
  return runner->RunBeforeSteps(request.epoch(), take, until);
}

}  // namespace ferry
