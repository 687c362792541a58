#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"

#ifdef FERRY_HAVE_CUDA
#include "kernels/cuda/cuda_ops.h"
#endif

namespace ferry {

#ifndef FERRY_HAVE_CUDA
int NumCudaDevices() { return 0; }
int64_t CudaDeviceBytes(int) { return 0; }
#endif

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const BackendOptions& options) {
  RETURN_IF_ERROR(CheckIsa(options.isa));
  BackendOptions chosen = options;
  if (chosen.kind == "auto") chosen.kind = NumCudaDevices() > 0 ? "cuda" : "cpu";
  if (chosen.kind == "cpu" || chosen.kind.starts_with("reference")) return CreateHostOps(chosen);
  if (chosen.kind == "cuda") {
#ifdef FERRY_HAVE_CUDA
    return CreateCudaOps(chosen);
#else
    return FailedPrecondition("this build has no CUDA backend: build with nvcc on PATH and FERRY_CUDA=ON, or use cpu");
#endif
  }
  return InvalidArgument("backend is '%s', want auto, cpu, cuda or reference", chosen.kind);
}

}  // namespace ferry
