#include "kernels/cuda/nccl_peers.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <utility>

#include "common/nccl/nccl_communicator.h"
#include "common/nccl/nccl_library.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/cuda/cuda_handles.h"

#if __has_include(<nccl.h>)
#include <nccl.h>
// The part of NCCL's interface that nccl_library.h declares.
static_assert(sizeof(ncclUniqueId) == sizeof(ferry::NcclUniqueId) && ferry::NcclLibrary::kSuccess == ncclSuccess &&
              ferry::NcclLibrary::kInProgress == ncclInProgress && ferry::NcclLibrary::kBytesType == ncclUint8 &&
              ferry::NcclConfig::kUndefined == NCCL_CONFIG_UNDEF_INT);
static_assert(offsetof(ncclConfig_t, version) == offsetof(ferry::NcclConfig, version) &&
              offsetof(ncclConfig_t, blocking) == offsetof(ferry::NcclConfig, blocking) &&
              offsetof(ncclConfig_t, netName) == offsetof(ferry::NcclConfig, net_name) &&
              offsetof(ncclConfig_t, splitShare) == offsetof(ferry::NcclConfig, split_share));
#endif

namespace ferry {
namespace cuda {
namespace {

// Transfers run on a stream of their own.
class NcclPeer final : public DevicePeer {
 public:
  static absl::StatusOr<std::unique_ptr<DevicePeer>> Join(const NcclCommunicator::Options& options, const NcclUniqueId& id,
                                                          int end, int device, Ops* ops) {
    std::unique_ptr<NcclPeer> peer(new NcclPeer(device, ops));
    RETURN_IF_ERROR(peer->Use());
    ASSIGN_OR_RETURN(peer->stream_, Stream::Create());
    ASSIGN_OR_RETURN(peer->done_, StreamEvent::Create());
    ASSIGN_OR_RETURN(peer->communicator_, NcclCommunicator::Begin(options, id, end));
    return peer;
  }

  absl::Status AwaitReady(Deadline deadline, const std::function<bool()>& cancelled) override {
    return communicator_->AwaitReady(deadline, cancelled);
  }
  absl::Status Send(std::span<const std::byte> device_bytes, Deadline deadline) override {
    RETURN_IF_ERROR(FollowCompute());
    RETURN_IF_ERROR(communicator_->Send(device_bytes.data(), static_cast<int64_t>(device_bytes.size()), stream_.get(), deadline));
    return AwaitDone(deadline);
  }
  absl::Status Receive(std::span<std::byte> device_bytes, Deadline deadline) override {
    RETURN_IF_ERROR(FollowCompute());
    RETURN_IF_ERROR(
        communicator_->Receive(device_bytes.data(), static_cast<int64_t>(device_bytes.size()), stream_.get(), deadline));
    return AwaitDone(deadline);
  }
  void Cut() override { communicator_->Cut(); }

 private:
  NcclPeer(int device, Ops* ops) : device_(device), ops_(*ops) {}

  absl::Status Use() { return CudaStatus(cudaSetDevice(device_), "choosing the GPU"); }
  absl::Status FollowCompute() {
    RETURN_IF_ERROR(Use());
    ASSIGN_OR_RETURN(const Event computed, ops_.MarkCompute());
    return CudaStatus(cudaStreamWaitEvent(stream_.get(), CudaEvent::Of(computed)->get(), 0), "waiting for compute");
  }
  absl::Status AwaitDone(Deadline deadline) {
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(done_.get(), stream_.get()), "marking a transfer"));
    return communicator_->Await(
        [this]() -> absl::StatusOr<bool> {
          const cudaError_t error = cudaEventQuery(done_.get());
          if (error == cudaErrorNotReady) return false;
          RETURN_IF_ERROR(CudaStatus(error, "a transfer"));
          return true;
        },
        deadline);
  }

  const int device_;
  Ops& ops_;
  // The communicator ends first: it aborts what still runs on the stream.
  Stream stream_;
  StreamEvent done_;
  std::unique_ptr<NcclCommunicator> communicator_;
};

class NcclPeers final : public DevicePeers {
 public:
  static absl::StatusOr<std::unique_ptr<DevicePeers>> Create(const DevicePeersOptions& options, Ops* ops) {
    std::unique_ptr<NcclPeers> peers(new NcclPeers(options, ops));
    ASSIGN_OR_RETURN(peers->communicators_.library, NcclLibrary::Load(options.library));
    peers->communicators_.on_stuck = options.on_stuck;
    char bus[64] = "";
    RETURN_IF_ERROR(CudaStatus(cudaDeviceGetPCIBusId(bus, sizeof(bus), peers->device_), "asking where the GPU is"));
    peers->bus_ = bus;
    return peers;
  }

  std::string name() const override { return "NCCL " + communicators_.library->version(); }
  std::string device() const override { return bus_; }

  absl::StatusOr<std::string> MakeKey() override {
    ASSIGN_OR_RETURN(const NcclUniqueId id, NcclCommunicator::MakeId(*communicators_.library));
    return std::string(id.bytes, NcclUniqueId::kBytes);
  }
  absl::StatusOr<std::unique_ptr<DevicePeer>> Join(const std::string& key, int end) override {
    if (key.size() != NcclUniqueId::kBytes) {
      return InvalidArgument("the key of a connection between GPUs has %d bytes, want %d", key.size(), NcclUniqueId::kBytes);
    }
    NcclUniqueId id;
    std::memcpy(id.bytes, key.data(), key.size());
    return NcclPeer::Join(communicators_, id, end, device_, &ops_);
  }

 private:
  NcclPeers(const DevicePeersOptions& options, Ops* ops) : device_(options.backend.device), ops_(*ops) {}

  const int device_;
  Ops& ops_;
  std::string bus_;
  NcclCommunicator::Options communicators_;
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<DevicePeers>> CreateNcclPeers(const DevicePeersOptions& options, Ops* ops) {
  return cuda::NcclPeers::Create(options, ops);
}

}  // namespace ferry
