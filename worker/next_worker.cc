#include "worker/next_worker.h"

#include <unistd.h>

#include <utility>

#include "absl/time/clock.h"
#include "common/grpc_status.h"
#include "common/host_id.h"
#include "common/log.h"
#include "worker/activation_ring.h"
#include "worker/channel.h"
#include "worker/stage_link_grpc.h"
#include "worker/stage_link_shm.h"

namespace ferry {
namespace {

absl::StatusOr<v1::ShareActivationsResponse> AskToShare(v1::Worker::Stub& stub, Incarnation next, uint64_t epoch,
                                                        const std::string& host, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::ShareActivationsRequest request;
  request.set_epoch(epoch);
  request.set_incarnation(next.value());
  request.set_host(host);
  v1::ShareActivationsResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub.ShareActivations(&context, request, &response)));
  return response;
}

absl::StatusOr<std::unique_ptr<ActivationRing>> MapOffered(const v1::ShareActivationsResponse& offer, int64_t n_embd,
                                                           absl::Time deadline) {
  ASSIGN_OR_RETURN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket(), offer.key(), deadline));
  if (descriptors.size() != 1) return Internal("the next worker handed out %d descriptors, want 1", descriptors.size());
  return ActivationRing::Map(descriptors[0].Release(),
                             {.n_embd = n_embd, .rows_per_slot = offer.rows_per_slot(), .num_slots = offer.num_slots()});
}

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectNextWorker(const std::string& address, Incarnation next, uint64_t epoch,
                                                                  const StageLinkOptions& options, absl::Time deadline) {
  std::shared_ptr<grpc::Channel> channel = ConnectTo(address, Keepalive::kOn);
  if (!channel->WaitForConnected(absl::ToChronoTime(deadline))) {
    return Unavailable("the next worker does not answer at %s", address);
  }
  if (options.share_memory) {
    const std::unique_ptr<v1::Worker::Stub> stub = v1::Worker::NewStub(channel);
    ASSIGN_OR_RETURN(const v1::ShareActivationsResponse offer, AskToShare(*stub, next, epoch, HostId(), deadline));
    if (!offer.socket().empty()) {
      absl::StatusOr<std::unique_ptr<ActivationRing>> ring = MapOffered(offer, options.n_embd, deadline);
      if (ring.ok()) return MakeRingSink(*std::move(ring), options.ops);
      spdlog::warn("hidden states go to the next worker by messages: {}", ring.status().ToString());
      RETURN_IF_ERROR(AskToShare(*stub, next, epoch, /*host=*/"", deadline).status());
    }
  }
  return MakeGrpcSink(std::move(channel), next, options.n_embd, epoch);
}

absl::StatusOr<v1::ShareActivationsResponse> ActivationSharer::Share(const v1::ShareActivationsRequest& request,
                                                                     const StageLinkOptions& options, StepRunner* runner) {
  v1::ShareActivationsResponse response;
  if (!options.share_memory || request.host() != HostId()) {
    RETURN_IF_ERROR(runner->ReceiveFrom(request.epoch(), nullptr));
    return response;
  }
  const std::lock_guard lock(mutex_);
  if (server_ == nullptr) {
    // Several workers of one process, as in tests, need names of their own.
    ASSIGN_OR_RETURN(server_, DescriptorServer::Listen(absl::StrFormat("ferry-worker-%d-%s", getpid(),
                                                                       RandomDescriptorKey().substr(0, 16))));
  }
  const RingShape shape = RingShapeFor(options.n_embd, options.max_rows);
  ASSIGN_OR_RETURN(std::unique_ptr<ActivationRing> ring, ActivationRing::Create(shape));
  if (!key_.empty()) server_->Withdraw(key_);  // of an epoch that is over, whether or not it was fetched
  key_ = RandomDescriptorKey();
  if (!server_->Offer(key_, {ring->fd()})) return ResourceExhausted("no descriptors are left to share memory with");
  const absl::Status taken = runner->ReceiveFrom(request.epoch(), MakeRingSource(std::move(ring), options.ops));
  if (!taken.ok()) {
    server_->Withdraw(key_);
    return taken;
  }
  response.set_socket(server_->name());
  response.set_key(key_);
  response.set_rows_per_slot(static_cast<uint32_t>(shape.rows_per_slot));
  response.set_num_slots(static_cast<uint32_t>(shape.num_slots));
  return response;
}

}  // namespace ferry
