#pragma once

// Launches that may begin while the one before them still runs (programmatic dependent launch). In a chain of small kernels, as
// decode is, each then begins about 0.9 us earlier: 2.6 us a kernel instead of 3.5 on an H200 (docs/measurements/decode_gpu.md).

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

// For kernels queued by LaunchOverlapping: returns when all launches before this one are done and what they wrote can be seen.
// Before it a kernel reads nothing but weights, and writes nothing. Every kernel so queued calls it in every block, so that one
// that is done says the same of all before it.
__device__ inline void AwaitLaunchesBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n griddepcontrol.wait;" ::: "memory");
#endif
}

// Whether the current device can overlap launches: capability 9.0 and later.
inline bool LaunchesOverlap() {
  thread_local int known_device = -1;
  thread_local bool overlap = false;
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device != known_device && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess) {
    known_device = device;
    overlap = major >= 9;
  }
  return overlap;
}

struct LaunchPlace {
  cudaStream_t stream = nullptr;
  int64_t shared_bytes = 0;  // of dynamic shared memory
};
template <typename... Params, typename... Args>
cudaError_t LaunchOverlapping(void (*kernel)(Params...), dim3 grid, int threads, const LaunchPlace& place, Args&&... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = place.stream;
  config.dynamicSmemBytes = static_cast<size_t>(place.shared_bytes);
  config.attrs = &overlap;
  config.numAttrs = LaunchesOverlap() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}
template <typename... Params, typename... Args>
cudaError_t LaunchOverlapping(void (*kernel)(Params...), dim3 grid, int threads, cudaStream_t stream, Args&&... args) {
  return LaunchOverlapping(kernel, grid, threads, LaunchPlace{stream}, std::forward<Args>(args)...);
}

}  // namespace ferry::cuda
