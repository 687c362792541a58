#include "cli/cluster_watch.h"

#include <grpcpp/client_context.h>

#include <utility>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(250);
constexpr absl::Duration kAnswerTimeout = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<ClusterWatch>> ClusterWatch::Start(const std::string& socket) {
  std::unique_ptr<ClusterWatch> watch(new ClusterWatch);
  ASSIGN_OR_RETURN(watch->thread_, StartThread([raw = watch.get(), socket] { raw->Run(socket); }));
  return watch;
}

ClusterWatch::~ClusterWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool ClusterWatch::IsLost(pid_t worker) const {
  const std::lock_guard lock(mutex_);
  return lost_.contains(worker);
}

absl::Duration ClusterWatch::Silence() const {
  const std::lock_guard lock(mutex_);
  return since_answer_.Elapsed();
}

void ClusterWatch::Run(const std::string& socket) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const std::unique_ptr<internal::v1::Cluster::Stub> cluster = internal::v1::Cluster::NewStub(
      ConnectNode("unix:" + socket, NodeRole::kCoordinator, /*identity=*/nullptr, std::move(arguments)));
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(kAnswerTimeout));
    internal::v1::ListMembersResponse response;
    const absl::Status status = FromGrpcStatus(cluster->ListMembers(&context, {}, &response));
    std::set<pid_t> lost;
    for (const internal::v1::ClusterMember& member : response.members()) {
      if (member.same_host() && member.state() == "lost") lost.insert(member.pid());
    }
    lock.lock();
    if (status.ok()) {
      lost_ = std::move(lost);
      since_answer_.Restart();
    } else {
      spdlog::debug("the coordinator did not say who is lost: {}", status.ToString());
    }
    wake_.wait_for(lock, absl::ToChronoMilliseconds(kInterval), [this] { return stop_; });
  }
}

}  // namespace ferry
