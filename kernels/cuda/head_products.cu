#include <algorithm>
#include <numeric>

#include "kernels/cuda/head_products.h"
#include "kernels/cuda/products.h"

namespace ferry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kInStep = 8;  // numbers: 16 bytes, as the kernels read rows

int64_t PartOf(const DeviceRows& rows, int64_t num_heads) { return rows.cols / num_heads; }
// The largest step that both rows and heads are multiples of.
int64_t OutStep(const HeadProductArgs& args) { return std::gcd(args.out.stride, PartOf(args.out, args.num_heads)); }

// The tables are offsets [num_heads + 1], then gather and scatter [num_heads][rows], as ProductParams has them.
struct Steps {
  int64_t in_row, in_head, out_row, out_head;
};
// Grid: [ceil(num_heads * rows / kThreads)]. Block: kThreads, an entry each.
// Bound: 8 bytes an entry; a launch.
__global__ void HeadTablesKernel(int num_heads, int64_t rows, Steps steps, int32_t* tables) {
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, entries = num_heads * rows;
  if (entry <= num_heads) tables[entry] = static_cast<int32_t>(entry * rows);
  if (entry >= entries) return;
  const int64_t head = entry / rows, row = entry % rows;
  int32_t* const gather = tables + num_heads + 1;
  gather[entry] = static_cast<int32_t>(row * steps.in_row + head * steps.in_head);
  gather[entries + entry] = static_cast<int32_t>(row * steps.out_row + head * steps.out_head);
}

const char* Check(const ProductDevice& device, const HeadProductArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (args.num_heads < 1 || args.num_heads > 1 << 16) return "argument num_heads: not in [1, 65536]";
  if (args.n < 1 || args.n >= kMost - 256) return "argument n: not in [1, 2^31 - 256)";
  if (args.k < 32 || args.k >= kMost - 256 || args.k % 32 != 0) return "argument k: not a positive multiple of 32 below 2^31";
  if (args.in.dtype != DType::kBF16 && args.in.dtype != DType::kF16) return "argument in: want BF16 or F16";
  if (args.in.dtype == DType::kBF16 && device.capability < 80) return "argument in: BF16 needs capability 8.0, want F16";
  if (args.out.dtype != args.in.dtype || args.out.rows != args.in.rows)
    return "argument out: its type or rows are not those of in";
  const int64_t in_part = PartOf(args.in, args.num_heads), out_part = PartOf(args.out, args.num_heads);
  if (args.in.cols % args.num_heads != 0 || in_part < args.k) return "argument in: no equal parts of k columns";
  if (args.out.cols % args.num_heads != 0 || out_part < args.n) return "argument out: no equal parts of n columns";
  if (args.in.data == nullptr || reinterpret_cast<uintptr_t>(args.in.data) % 16 != 0) return "argument in: not on 16 bytes";
  if (args.in.stride % kInStep != 0 || in_part % kInStep != 0) return "argument in: stride or part is no multiple of 8";
  if (args.out.data == nullptr) return "argument out: null";
  if (args.in.rows * args.in.stride / kInStep >= kMost || args.out.rows * args.out.stride / OutStep(args) >= kMost ||
      args.in.rows * args.num_heads >= kMost) {
    return "argument in: too many rows";
  }
  if (args.weights == nullptr || reinterpret_cast<uintptr_t>(args.weights) % 128 != 0)
    return "argument weights: not on 128 bytes";
  if (args.matrix_bytes % 128 != 0 || args.matrix.scales % 128 != 0 || args.matrix.headers % 128 != 0)
    return "argument weights: a plane is not on 128 bytes";
  if (args.tables == nullptr) return "argument tables: null";
  return nullptr;
}

}  // namespace

int64_t HeadTableInts(int64_t rows, int64_t num_heads) { return num_heads + 1 + 2 * rows * num_heads; }

cudaError_t QueueHeadTables(const HeadProductArgs& args, int32_t* tables, cudaStream_t stream) {
  if (args.in.rows == 0) return cudaSuccess;
  const int64_t heads = args.num_heads, rows = args.in.rows, out_step = OutStep(args);
  const Steps steps = {args.in.stride / kInStep, PartOf(args.in, heads) / kInStep, args.out.stride / out_step,
                       PartOf(args.out, heads) / out_step};
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(std::max(heads * rows, heads + 1), kThreads), 1, 1, &grid));
  HeadTablesKernel<<<grid, kThreads, 0, stream>>>(static_cast<int>(heads), rows, steps, tables);
  return cudaGetLastError();
}

int64_t HeadExpansionBytes(const ProductDevice& device, const HeadProductArgs& args) {
  const ProductKernel kernel = ChooseExpertProduct(device, args.in.dtype, args.in.rows).kernel;
  return NeedsExpansion(kernel, args.matrix.type) ? LeastExpansionBytes(args.k, 1) : 0;
}

const char* HeadProducts(const ProductDevice& device, const HeadProductArgs& args, cudaStream_t stream) {
  if (args.in.rows == 0) return nullptr;
  if (const char* wrong = Check(device, args)) return wrong;
  const int64_t rows = args.in.rows, heads = args.num_heads, out_step = OutStep(args);
  ProductParams params;
  params.first = args.matrix;
  params.first.bias = -1;
  params.n = static_cast<int32_t>(args.n);
  params.k = static_cast<int32_t>(args.k);
  params.offsets = args.tables;
  params.in = args.in.data;
  params.act_type = args.in.dtype;
  params.in_rows = rows * args.in.stride / kInStep;
  params.in_stride = kInStep;
  params.gather = args.tables + heads + 1;
  params.gathered = true;
  params.out = args.out.data;
  params.out_type = args.out.dtype;
  params.out_rows = rows * args.out.stride / out_step;
  params.out_stride = out_step;
  params.scatter = params.gather + heads * rows;
  params.scattered = true;
  params.overlaps = true;
  const ProductConfig config = ChooseExpertProduct(device, args.in.dtype, rows);
  for (int64_t first = 0; first < heads; first += kMaxTasks) {
    params.num_tasks = static_cast<int32_t>(std::min<int64_t>(kMaxTasks, heads - first));
    for (int32_t task = 0; task < params.num_tasks; ++task) {
      params.tasks[task] = {.weights = args.weights + (first + task) * args.matrix_bytes,
                            .group = static_cast<int32_t>(first) + task,
                            .rows = static_cast<int32_t>(rows)};
    }
    const cudaError_t error = LaunchProducts(device, config.kernel, params, /*fused=*/false, args.expansion, stream);
    if (error == cudaErrorInvalidValue) return "argument matrix or expansion: a type without a kernel, or too few bytes";
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace ferry::cuda
