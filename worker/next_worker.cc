#include "worker/next_worker.h"

#include <utility>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "worker/activation_ring.h"
#include "worker/stage_link_grpc.h"
#include "worker/stage_link_shm.h"

namespace ferry {
namespace {

absl::StatusOr<internal::v1::ShareActivationsResponse> AskToShare(internal::v1::Worker::Stub& stub, Incarnation next,
                                                                  uint64_t epoch, const std::string& machine, Deadline deadline) {
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(deadline));
  internal::v1::ShareActivationsRequest request;
  request.set_epoch(epoch);
  request.set_incarnation(next.value());
  request.set_machine(machine);
  internal::v1::ShareActivationsResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub.ShareActivations(&context, request, &response)));
  return response;
}

absl::StatusOr<std::unique_ptr<ActivationRing>> MapOffered(const internal::v1::ShareActivationsResponse& offer, int64_t n_embd,
                                                           Deadline deadline) {
  ASSIGN_OR_RETURN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket(), offer.key(), deadline));
  if (descriptors.size() != 1) return Internal("the next worker handed out %d descriptors, want 1", descriptors.size());
  return ActivationRing::Map(descriptors[0].Release(),
                             {.n_embd = n_embd, .rows_per_slot = offer.rows_per_slot(), .num_slots = offer.num_slots()});
}

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectNextWorker(const std::string& address, Incarnation next, uint64_t epoch,
                                                                  const StageLinkOptions& options, Deadline deadline) {
  std::shared_ptr<grpc::Channel> channel =
      ConnectPeer(address, NodeRole::kWorker, options.identity, {.keepalive = true, .quick_reconnects = true});
  if (!channel->WaitForConnected(RpcDeadline(deadline))) {
    return Unavailable("the next worker does not answer at %s", address);
  }
  if (options.share_memory) {
    const std::unique_ptr<internal::v1::Worker::Stub> stub = internal::v1::Worker::NewStub(channel);
    ASSIGN_OR_RETURN(const internal::v1::ShareActivationsResponse offer, AskToShare(*stub, next, epoch, MachineId(), deadline));
    if (!offer.socket().empty()) {
      absl::StatusOr<std::unique_ptr<ActivationRing>> ring = MapOffered(offer, options.n_embd, deadline);
      if (ring.ok()) return MakeRingSink(*std::move(ring), options.ops);
      spdlog::warn("hidden states go to the next worker by messages: {}", ring.status().ToString());
      RETURN_IF_ERROR(AskToShare(*stub, next, epoch, /*machine=*/"", deadline).status());
    }
  }
  return MakeGrpcSink(std::move(channel), next, options.n_embd, epoch);
}

absl::StatusOr<internal::v1::ShareActivationsResponse> ActivationSharer::Share(
    const internal::v1::ShareActivationsRequest& request, const StageLinkOptions& options, StepRunner* runner) {
  internal::v1::ShareActivationsResponse response;
  if (!options.share_memory || request.machine() != MachineId()) {
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

}  // namespace ferry
