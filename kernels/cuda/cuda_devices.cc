#include "kernels/cuda/cuda_devices.h"

#include <cuda_runtime_api.h>

#include "kernels/ops.h"

namespace ferry {

absl::Status CheckCudaGpu(std::string_view name, int major, int minor) {
  if (major > 7 || (major == 7 && minor >= 5)) return absl::OkStatus();
  return FailedPrecondition("%s has compute capability %d.%d, Ferry needs 7.5 or newer: choose another GPU or the cpu backend",
                            name, major, minor);
}

int NumCudaDevices() {
  int count = 0, usable = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  cudaGetLastError();
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) continue;
    if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) continue;
    if (CheckCudaGpu("", major, minor).ok()) ++usable;
  }
  return usable;
}

int64_t CudaDeviceBytes(int device) {
  cudaDeviceProp properties;
  const bool known = device >= 0 && cudaGetDeviceProperties(&properties, device) == cudaSuccess;
  cudaGetLastError();
  return known ? static_cast<int64_t>(properties.totalGlobalMem) : 0;
}

}  // namespace ferry
