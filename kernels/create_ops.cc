#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

#ifdef FERRY_HAVE_CUDA
#include "kernels/cuda/cuda_ops.h"
#endif

namespace ferry {

#ifndef FERRY_HAVE_CUDA
int NumCudaDevices() { return 0; }
int64_t CudaDeviceBytes(int) { return 0; }
#endif

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const BackendOptions& options) {
  if (options.isa != "auto" && options.isa != "avx512" && options.isa != "avx2" && options.isa != "portable") {
    return InvalidArgument("isa is '%s', want auto, avx512, avx2 or portable", options.isa);
  }
  std::string kind = options.kind;
  if (kind == "auto") kind = NumCudaDevices() > 0 ? "cuda" : "cpu";
  if (kind == "reference") return std::unique_ptr<Ops>(std::make_unique<ReferenceOps>());
  if (kind == "cpu") return CreateCpuOps(options);
  if (kind == "cuda") {
#ifdef FERRY_HAVE_CUDA
    return CreateCudaOps(options);
#else
    return FailedPrecondition("this build has no CUDA backend: build with nvcc on PATH and FERRY_CUDA=ON, or use cpu");
#endif
  }
  return InvalidArgument("backend is '%s', want auto, cpu, cuda or reference", kind);
}

}  // namespace ferry
