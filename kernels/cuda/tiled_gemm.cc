#include "kernels/cuda/tiled_gemm.h"

#include <cstddef>

#include "kernels/cuda/products.h"

namespace ferry::cuda {
namespace {

const char* Check(const ProductDevice& device, const TiledGemmArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (args.m < 0 || args.m >= kMost) return "argument m: not in [0, 2^31)";
  if (args.n < 1 || args.n >= kMost - 256) return "argument n: not in [1, 2^31 - 256)";
  if (args.k < 32 || args.k >= kMost - 256 || args.k % 32 != 0) return "argument k: not a positive multiple of 32 below 2^31";
  if (args.act_type != DType::kBF16 && args.act_type != DType::kF16) return "argument act_type: want BF16 or F16";
  if (args.act_type == DType::kBF16 && device.capability < 80) return "argument act_type: BF16 needs capability 8.0, want F16";
  if (args.out_type != DType::kF32 && args.out_type != args.act_type) return "argument out_type: want F32 or act_type";
  if (args.accumulate && args.out_type != DType::kF32) return "argument accumulate: needs an F32 out";
  if (args.act == nullptr || reinterpret_cast<uintptr_t>(args.act) % 16 != 0) return "argument act: not on 16 bytes";
  if (args.act_stride < args.k || args.act_stride % 8 != 0) return "argument act_stride: below k, or no multiple of 8";
  if (args.weight == nullptr || reinterpret_cast<uintptr_t>(args.weight) % 128 != 0) return "argument weight: not on 128 bytes";
  for (const int64_t offset : {args.matrix.codes, args.matrix.scales, args.matrix.headers}) {
    if (offset < 0 || offset % 128 != 0) return "argument matrix: an offset is no multiple of 128";
  }
  if (args.out == nullptr) return "argument out: null";
  if (args.out_stride < args.n) return "argument out_stride: below n";
  return nullptr;
}

}  // namespace

int64_t DenseExpansionBytes(const ProductDevice& device, DType act_type, int64_t m, DType type, int64_t k) {
  return NeedsExpansion(ChooseDenseProduct(device, act_type, m).kernel, type) ? LeastExpansionBytes(k, 1) : 0;
}

const char* TiledGemm(const ProductDevice& device, const TiledGemmArgs& args, cudaStream_t stream) {
  if (args.m == 0) return nullptr;
  if (const char* wrong = Check(device, args)) return wrong;
  ProductParams params;
  params.num_tasks = 1;
  params.tasks[0] = {.weights = static_cast<const std::byte*>(args.weight), .rows = static_cast<int32_t>(args.m)};
  params.first = args.matrix;
  params.first.bias = -1;
  params.bias = args.bias;
  params.n = static_cast<int32_t>(args.n);
  params.k = static_cast<int32_t>(args.k);
  params.in = args.act;
  params.act_type = args.act_type;
  params.in_rows = args.m;
  params.in_stride = args.act_stride;
  params.out = args.out;
  params.out_type = args.out_type;
  params.out_rows = args.m;
  params.out_stride = args.out_stride;
  params.accumulate = args.accumulate;
  params.overlaps = true;
  const ProductConfig config = ChooseDenseProduct(device, args.act_type, args.m);
  const cudaError_t error = LaunchProducts(device, config.kernel, params, /*fused=*/false, args.expansion, stream);
  if (error == cudaErrorInvalidValue) return "argument matrix or expansion: a type without a kernel, or too few bytes";
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ferry::cuda
