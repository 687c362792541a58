#pragma once

// Device memory that processes share by CUDA's inter-process handles.

#include <memory>
#include <string>

#include "common/status.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/peer_memory.h"

namespace ferry::cuda {

// Both make memory that `copies` knows as shared until its end, which waits for `compute`. Both outlive it. The errors are those
// of kernels/peer_memory.h. The device is current in each call.
absl::StatusOr<std::unique_ptr<PeerMemory>> SharePeerMemory(int64_t bytes, CopyEngine* copies, cudaStream_t compute);
absl::StatusOr<std::unique_ptr<PeerMemory>> MapPeerMemory(const std::string& key, int64_t bytes, CopyEngine* copies,
                                                          cudaStream_t compute);

}  // namespace ferry::cuda
