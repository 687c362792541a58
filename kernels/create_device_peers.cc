#include "kernels/device_peer.h"

#ifdef FERRY_HAVE_CUDA
#include "kernels/cuda/nccl_peers.h"
#endif

namespace ferry {

absl::StatusOr<std::unique_ptr<DevicePeers>> CreateDevicePeers(const DevicePeersOptions& options, Ops* ops) {
#ifdef FERRY_HAVE_CUDA
  if (!ops->name().starts_with("cuda")) return FailedPrecondition("NCCL joins GPUs, and this worker computes on %s", ops->name());
  return CreateNcclPeers(options, ops);
#else
  return FailedPrecondition("this build has no CUDA, so it has no NCCL: build with nvcc on PATH and FERRY_CUDA=ON (%s, %s)",
                            ops->name(), options.library.empty() ? "libnccl.so.2" : options.library);
#endif
}

}  // namespace ferry
