#include "worker/next_worker.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/rpc/channels.h"
#include "common/rpc/node_identity.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/thread_limit.h"
#include "worker/activation_ring.h"
#include "worker/device_rows.h"
#include "worker/stage_link_grpc.h"
#include "worker/stage_link_shm.h"
#include "worker/stage_link_tcp.h"

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

Deadline AutoDeadline(const StageLinkOptions& options, Deadline deadline) {
  const absl::Duration patience = kAutoPatience / std::max(1, options.num_workers - 1);
  return std::min(deadline, Deadline::In(std::min(patience, kLongestAutoPatience)));
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
  std::string address;
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
  // A data connection, which the next worker takes for this epoch.
  absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectTcp(Deadline until) const {
    ASSIGN_OR_RETURN(const internal::v1::ListenForActivationsResponse offer,
                     Ask(&internal::v1::Worker::Stub::ListenForActivations, internal::v1::ListenForActivationsRequest(), until));
    ASSIGN_OR_RETURN(ListenAddress at, ParseListenAddress(offer.port() == 0 ? offer.socket() : address, 0));
    if (offer.port() > 65535 || offer.key().size() != ActivationWords::kKeyBytes || (offer.port() == 0) == at.unix_path.empty()) {
      return Internal("the next worker names no address of a data connection");
    }
    if (at.unix_path.empty()) at.port = static_cast<int>(offer.port());
    if (at.unix_path.empty() && options.identity == nullptr) {
      return absl::FailedPreconditionError("this worker has no certificates, which data connections between hosts need");
    }
    const DataIdentity identity = {.folder = options.identity == nullptr ? "" : options.identity->folder(),
                                   .peer = NodeRole::kWorker};
    ASSIGN_OR_RETURN(std::unique_ptr<DataConnection> connection, DataConnection::Connect(at, identity, until));
    const ActivationWords words = {.incarnation = next.value(), .epoch = epoch, .n_embd = options.n_embd, .key = offer.key()};
    RETURN_IF_ERROR(connection->Send(Encode(words), until));
    internal::v1::TakeActivationsRequest take;
    take.set_key(offer.key());
    RETURN_IF_ERROR(Ask(&internal::v1::Worker::Stub::TakeActivations, std::move(take), until).status());
    return MakeTcpSink(std::move(connection),
                       {.ops = options.ops, .n_embd = options.n_embd, .max_rows = options.max_rows, .epoch = epoch});
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
                     .address = address,
                     .channel = std::move(channel),
                     .next = next,
                     .epoch = epoch,
                     .options = options,
                     .runner = runner,
                     .deadline = deadline};
  ASSIGN_OR_RETURN(std::unique_ptr<ActivationSink> sink, ConnectByHost(call));
  if (options.transport == Transport::kNccl) return AddDevices(call, std::move(sink));
  if (options.transport != Transport::kAuto || runner == nullptr) return sink;
  if (link().way() == "grpc") return TakeTcpIfFaster(call, std::move(sink));
  return options.peers != nullptr ? AddIfFaster(call, std::move(sink)) : std::move(sink);
}

// By memory, or by messages as --transport names them, or over gRPC.
absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::ConnectByHost(const Call& call) {
  const bool by_name = call.options.transport == Transport::kShm;
  if (call.options.transport == Transport::kGrpc) {
    RETURN_IF_ERROR(call.Share(/*machine=*/"").status());
    SetLink(LinkOf("grpc", "--transport grpc"));
  } else if (call.options.transport == Transport::kTcp) {
    absl::StatusOr<std::unique_ptr<ActivationSink>> sink = call.ConnectTcp(call.deadline);
    if (!sink.ok()) return Annotate(sink.status(), "--transport tcp");
    SetLink(LinkOf("tcp", "--transport tcp"));
    return sink;
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
  absl::StatusOr<std::unique_ptr<DevicePeer>> peer = call.Join(AutoDeadline(call.options, call.deadline));
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

// `sink` is that of gRPC, through which nothing has gone.
absl::StatusOr<std::unique_ptr<ActivationSink>> NextWorker::TakeTcpIfFaster(const Call& call,
                                                                            std::unique_ptr<ActivationSink> sink) {
  const Deadline until = AutoDeadline(call.options, call.deadline);
  absl::StatusOr<std::unique_ptr<ActivationSink>> tcp = call.ConnectTcp(until);
  if (!tcp.ok()) {
    spdlog::info("hidden states go to the next worker over gRPC, since no data connection can be made: {}",
                 tcp.status().ToString());
    SetLink(LinkOf("grpc", ShortReason(tcp.status())));
    // It may have taken the connection and not have said so in time.
    RETURN_IF_ERROR(call.Share(/*machine=*/"").status());
    return sink;
  }
  const absl::Status measured = MeasureTcpOnce(call, **tcp, until);
  const bool takes_tcp = measured.ok() && TakesTcp(times_);
  const std::string why = measured.ok() ? DescribeTcpChoice(times_) : ShortReason(measured);
  spdlog::info("hidden states go to the next worker by {}: {}", takes_tcp ? "tcp" : "grpc", why);
  SetLink(LinkOf(takes_tcp ? "tcp" : "grpc", why));
  if (takes_tcp) return tcp;
  tcp->reset();
  RETURN_IF_ERROR(call.Share(/*machine=*/"").status());
  return sink;
}

namespace {

// One message from this device's memory until the next worker has it in its own, which `back` tells.
absl::StatusOr<absl::Duration> TimeMessage(Ops& ops, ActivationSink& way, ActivationSink& back, Tensor rows, Deadline deadline) {
  RETURN_IF_ERROR(ops.Synchronize(deadline));
  const Stopwatch watch;
  RETURN_IF_ERROR(SendDeviceRows(ops, way, kMeasuringStep, rows, deadline));
  RETURN_IF_ERROR(back.AwaitDropped(deadline));
  return watch.Elapsed();
}

// Of kTimedMessages behind one that warms up.
absl::StatusOr<absl::Duration> MedianTime(Ops& ops, ActivationSink& way, ActivationSink& back, Tensor rows, Deadline deadline) {
  RETURN_IF_ERROR(TimeMessage(ops, way, back, rows, deadline).status());
  std::vector<absl::Duration> times(kTimedMessages);
  for (absl::Duration& time : times) {
    ASSIGN_OR_RETURN(time, TimeMessage(ops, way, back, rows, deadline));
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
    sink.set_min_rows(kNoMessage);
    ASSIGN_OR_RETURN(time.shm, MedianTime(ops, sink, sink, all.Rows(0, rows), deadline));
    sink.set_min_rows(1);
    ASSIGN_OR_RETURN(time.nccl, MedianTime(ops, sink, sink, all.Rows(0, rows), deadline));
  }
  return times;
}

}  // namespace

absl::Status NextWorker::MeasureTogether(const Call& call, internal::v1::MeasureActivationsRequest request, Deadline until,
                                         const std::function<absl::Status()>& measure) {
  request.set_seconds(std::max(0.001, absl::ToDoubleSeconds(until.Remaining())));
  absl::Status taken;
  ASSIGN_OR_RETURN(std::thread asking, StartThread([&] {
                     const Deadline answered = Deadline::In(until.Remaining() + kAnswerPatience);
                     taken = call.Ask(&internal::v1::Worker::Stub::MeasureActivations, request, answered).status();
                   }));
  const absl::Status measured = call.runner->RunBeforeSteps(/*epoch=*/0, [&](ActivationSource*) { return measure(); }, until);
  asking.join();
  RETURN_IF_ERROR(taken);
  return measured;
}

// The figures of one next worker are kept, so that a later epoch begins sooner.
absl::Status NextWorker::MeasureOnce(const Call& call, DeviceSink& sink) {
  if (measured_with_ == call.next && !times_.empty()) return absl::OkStatus();
  const std::vector<int64_t> sizes = RowsToMeasure(call.options.max_rows);
  const Deadline until = std::min(call.deadline, Deadline::In(kMeasuringPatience));
  internal::v1::MeasureActivationsRequest request;
  for (const int64_t rows : sizes) {
    for (int i = 0; i < 2 * (1 + kTimedMessages); ++i) request.add_rows(static_cast<uint32_t>(rows));
  }
  absl::StatusOr<std::vector<LinkTime>> times = Internal("nothing was measured");
  RETURN_IF_ERROR(MeasureTogether(call, request, until, [&] {
    times = MeasureWays(call.options, sink, sizes, until);
    return times.status();
  }));
  times_ = *std::move(times);
  measured_with_ = call.next;
  return absl::OkStatus();
}

// The same between hosts. A slow network takes longer for the largest messages than an epoch may take to begin, so each size is
// measured only if that is expected to end in time.
absl::Status NextWorker::MeasureTcpOnce(const Call& call, ActivationSink& tcp, Deadline until) {
  if (measured_with_ == call.next && !times_.empty()) return absl::OkStatus();
  Ops& ops = *call.options.ops;
  const std::vector<int64_t> sizes = RowsToMeasure(call.options.max_rows);
  std::vector<LinkTime> times;
  for (const int64_t rows : sizes) {
    if (!times.empty()) {
      const double more = static_cast<double>(rows) / static_cast<double>(times.back().rows);
      const absl::Duration expected = (1 + kTimedMessages) * more * (times.back().tcp + times.back().grpc);
      if (expected > until.Remaining() / 2) break;
    }
    LinkTime time = {.rows = rows};
    for (const bool pushed : {false, true}) {
      internal::v1::MeasureActivationsRequest request;
      request.set_pushed(pushed);
      for (int i = 0; i < 1 + kTimedMessages; ++i) request.add_rows(static_cast<uint32_t>(rows));
      // Its stream ends with it.
      const std::unique_ptr<ActivationSink> grpc =
          pushed ? MakeGrpcSink(call.channel, call.next, call.options.n_embd, call.epoch) : nullptr;
      RETURN_IF_ERROR(MeasureTogether(call, request, until, [&]() -> absl::Status {
        ASSIGN_OR_RETURN(const DeviceBuffer memory, ops.Allocate(rows * call.options.n_embd * int64_t{sizeof(float)}));
        const Tensor all(memory.data(), DType::kF32, rows, call.options.n_embd);
        ASSIGN_OR_RETURN((pushed ? time.grpc : time.tcp), MedianTime(ops, pushed ? *grpc : tcp, tcp, all, until));
        return absl::OkStatus();
      }));
    }
    times.push_back(time);
  }
  times_ = std::move(times);
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
  ring->StayAwake(options.awake);
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

absl::StatusOr<internal::v1::ListenForActivationsResponse> ListenForPrevious(
    const internal::v1::ListenForActivationsRequest& request, const StageLinkOptions& options, StepRunner* runner) {
  if (options.transport != Transport::kAuto && options.transport != Transport::kTcp) {
    return FailedPrecondition("the next worker was started with --transport %s", NameOf(options.transport));
  }
  if (options.listener == nullptr) return absl::FailedPreconditionError("the next worker takes no data connection");
  if (runner->epoch() != request.epoch()) return Aborted("epoch is %d, want %d", request.epoch(), runner->epoch());
  ASSIGN_OR_RETURN(
      const ActivationListener::Offer offer,
      options.listener->Expect(
          {.incarnation = options.incarnation.value(), .epoch = request.epoch(), .n_embd = options.n_embd, .key = ""}));
  internal::v1::ListenForActivationsResponse response;
  if (offer.address.unix_path.empty()) {
    response.set_port(static_cast<uint32_t>(offer.address.port));
  } else {
    response.set_socket(offer.address.ToString());
  }
  response.set_key(offer.key);
  return response;
}

absl::Status TakeFromPrevious(const internal::v1::TakeActivationsRequest& request, const StageLinkOptions& options,
                              StepRunner* runner, Deadline deadline, const std::function<bool()>& cancelled) {
  if (options.listener == nullptr) return absl::FailedPreconditionError("the next worker takes no data connection");
  ASSIGN_OR_RETURN(std::unique_ptr<DataConnection> connection, options.listener->Take(request.key(), deadline, cancelled));
  ASSIGN_OR_RETURN(
      std::unique_ptr<ActivationSource> source,
      MakeTcpSource(std::move(connection),
                    {.ops = options.ops, .n_embd = options.n_embd, .max_rows = options.max_rows, .epoch = request.epoch()}));
  return runner->ReceiveFrom(request.epoch(), std::move(source));
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
                             StepRunner* runner, ActivationQueue* pushed) {
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
    if (source == nullptr) {
      return absl::FailedPreconditionError("neither memory nor a data connection joins the previous worker");
    }
    Ops& ops = *options.ops;
    ASSIGN_OR_RETURN(const DeviceBuffer memory, ops.Allocate(int64_t{*most} * options.n_embd * int64_t{sizeof(float)}));
    const Tensor all(memory.data(), DType::kF32, *most, options.n_embd);
    for (const uint32_t rows : request.rows()) {
      ActivationSource& way = request.pushed() ? *pushed : *source;
      RETURN_IF_ERROR(ReceiveDeviceRows(ops, way, kMeasuringStep, all.Rows(0, rows), until));
      RETURN_IF_ERROR(source->Confirm(until));
    }
    return absl::OkStatus();
  };
  return runner->RunBeforeSteps(request.epoch(), take, until);
}

}  // namespace ferry
