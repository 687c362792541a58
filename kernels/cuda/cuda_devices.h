#pragma once

// The GPUs of this machine. ops.h declares NumCudaDevices and CudaDeviceBytes, so that builds without CUDA have them too.

#include <string_view>

#include "common/status.h"

namespace ferry {

// FailedPrecondition, naming the GPU, unless its compute capability is at least 7.5.
absl::Status CheckCudaGpu(std::string_view name, int major, int minor);

}  // namespace ferry
