#include "cli/cluster_watch.h"

#include <grpcpp/client_context.h>

#include <utility>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "common/rpc/rpc_deadline.h"

namespace ferry {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(250);
constexpr absl::Duration kAnswerTimeout = absl::Seconds(2);

std::unique_ptr<internal::v1::Cluster::Stub> ConnectTo(const std::string& socket) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return internal::v1::Cluster::NewStub(
      ConnectNode("unix:" + socket, NodeRole::kCoordinator, /*identity=*/nullptr, std::move(arguments)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ClusterWatch>> ClusterWatch::Start(const std::string& socket) {
  std::unique_ptr<ClusterWatch> watch(new ClusterWatch(socket));
  ASSIGN_OR_RETURN(watch->thread_, RepeatingThread::Start(kInterval, [raw = watch.get()] { raw->Ask(); }));
  return watch;
}

ClusterWatch::ClusterWatch(const std::string& socket) : cluster_(ConnectTo(socket)) {}
ClusterWatch::~ClusterWatch() = default;

bool ClusterWatch::IsLost(pid_t worker) const {
  const std::lock_guard lock(mutex_);
  return lost_.contains(worker);
}

absl::Duration ClusterWatch::Silence() const {
  const std::lock_guard lock(mutex_);
  return since_answer_.Elapsed();
}

void ClusterWatch::Ask() {
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(kAnswerTimeout));
  internal::v1::ListMembersResponse response;
  const absl::Status status = FromGrpcStatus(cluster_->ListMembers(&context, {}, &response));
  if (!status.ok()) {
    spdlog::debug("the coordinator did not say who is lost: {}", status.ToString());
    return;
  }
  std::set<pid_t> lost;
  for (const internal::v1::ClusterMember& member : response.members()) {
    if (member.same_machine() && member.state() == "lost") lost.insert(member.pid());
  }
  const std::lock_guard lock(mutex_);
  lost_ = std::move(lost);
  since_answer_.Restart();
}

}  // namespace ferry
