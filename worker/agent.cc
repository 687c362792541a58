#include "worker/agent.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kRegisterTimeout = absl::Seconds(30);
constexpr absl::Duration kRegisterPause = absl::Milliseconds(200);
constexpr absl::Duration kGoneTimeout = absl::Seconds(2);  // refused connections on one host for so long: it is gone

// gRPC says Unavailable for a connection it cannot make, as the coordinator does while it loads.
bool IsConnectFailure(const absl::Status& status) {
  return absl::IsUnavailable(status) && (status.message().find("failed to connect") != absl::string_view::npos ||
                                         status.message().find("onnection refused") != absl::string_view::npos);
}

bool IsWorthWaiting(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status);
}

}  // namespace

absl::StatusOr<internal::v1::RegisterResponse> Agent::Register(internal::v1::Cluster::StubInterface* cluster,
                                                               const internal::v1::RegisterRequest& request,
                                                               absl::Duration patience, const std::function<bool()>& cancelled) {
  Stopwatch silent;
  std::string last_message;
  bool complained = false;
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(kRegisterTimeout));
    internal::v1::RegisterResponse response;
    const absl::Status status = FromGrpcStatus(cluster->Register(&context, request, &response));
    if (status.ok()) return response;
    if (!absl::IsUnavailable(status)) return Annotate(status, "Register");
    const bool unreachable = IsConnectFailure(status);
    if (!unreachable) silent.Restart();
    if (silent.Elapsed() > patience) {
      return Annotate(status, "Register: the coordinator does not answer; it listens on loopback unless it was given --listen");
    }
    if (unreachable && !std::exchange(complained, true)) {
      spdlog::warn("the coordinator cannot be reached yet, trying for {:.0f} s: {}", absl::ToDoubleSeconds(patience),
                   std::string(status.message()));
    }
    if (status.message() != last_message) {
      spdlog::info("waiting for a place: {}", Escaped(std::string(status.message())));
      last_message = std::string(status.message());
    }
    for (const Deadline until = Deadline::In(kRegisterPause); !until.Passed(); absl::SleepFor(absl::Milliseconds(50))) {
      if (cancelled && cancelled()) return Cancelled("asked to end before the coordinator gave a place");
    }
  }
}

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(internal::v1::Cluster::StubInterface* cluster, const Options& options,
                                                    std::function<void(internal::v1::HeartbeatRequest*)> fill,
                                                    std::function<void(const absl::Status&)> on_lost) {
  std::unique_ptr<Agent> agent(new Agent(cluster, options, std::move(fill), std::move(on_lost)));
  ASSIGN_OR_RETURN(agent->thread_, StartThread([raw = agent.get()] { raw->Loop(); }));
  return agent;
}

Agent::~Agent() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Agent::Hurry() {
  const std::lock_guard lock(mutex_);
  hurry_ = true;
  changed_.notify_all();
}

void Agent::Loop() {
  Stopwatch since_success;
  std::unique_lock lock(mutex_);
  while (!ending_) {
    hurry_ = false;
    lock.unlock();
    const absl::Status beat = Beat(std::max(options_.interval, std::min(options_.timeout / 2, absl::Seconds(2))));
    if (beat.ok()) since_success.Restart();
    const absl::Duration silent = since_success.Elapsed();
    const bool gone = options_.same_machine && absl::IsUnavailable(beat) && silent >= kGoneTimeout;
    if (!beat.ok() && (!IsWorthWaiting(beat) || silent >= options_.timeout || gone)) {
      on_lost_(Annotate(beat, "the coordinator is lost"));
      return;
    }
    if (!beat.ok()) spdlog::debug("heartbeat: {}", beat.ToString());
    lock.lock();
    const absl::Duration pause = beat.ok() ? options_.interval : std::min(options_.interval, absl::Milliseconds(250));
    changed_.wait_for(lock, absl::ToChronoMicroseconds(pause), [&] { return ending_ || hurry_; });
  }
}

absl::Status Agent::Beat(absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(timeout));
  internal::v1::HeartbeatRequest request;
  fill_(&request);
  request.set_worker_id(options_.worker_id);
  request.set_incarnation(options_.incarnation.value());
  internal::v1::HeartbeatResponse response;
  return FromGrpcStatus(cluster_.Heartbeat(&context, request, &response));
}

}  // namespace ferry
