#include "kernels/cuda/expert_mlp.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/cuda/products.h"

namespace ferry::cuda {
namespace {

bool Aligned(const void* pointer, uintptr_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

const char* Check(const ProductDevice& device, const ExpertMlpArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const ExpertShape& shape = args.shape;
  if (shape.n_embd < 32 || shape.n_embd > kMost || shape.n_embd % 32 != 0) return "argument shape.n_embd: not a multiple of 32";
  if (shape.n_ff < 32 || shape.n_ff > kMost || shape.n_ff % 32 != 0) return "argument shape.n_ff: not a multiple of 32";
  for (const ProductMatrix* matrix : {&shape.gate, &shape.up, &shape.down}) {
    for (const int64_t offset : {matrix->codes, matrix->scales, matrix->headers, std::max<int64_t>(matrix->bias, 0)}) {
      if (offset < 0 || offset % 16 != 0) return "argument shape: an offset is negative or not on 16 bytes";
    }
  }
  constexpr int64_t kFar = int64_t{1} << 31;
  const ProductMatrix &gate = shape.gate, &up = shape.up;
  if (up.codes <= gate.codes || up.codes - gate.codes > kFar || up.scales <= gate.scales || up.scales - gate.scales > kFar) {
    return "argument shape: up does not lie within 2 GiB after gate";
  }
  if (args.in_type != DType::kBF16 && args.in_type != DType::kF16) return "argument in_type: want BF16 or F16";
  if (args.in_type == DType::kBF16 && device.capability < 80) return "argument in_type: BF16 needs capability 8.0, want F16";
  if (args.out_type != DType::kF32 && args.out_type != args.in_type) return "argument out_type: want F32 or in_type";
  if (args.offsets == nullptr) return "argument offsets: null";
  if (args.in == nullptr || !Aligned(args.in, 16)) return "argument in: not on 16 bytes";
  if (args.in_stride < shape.n_embd || args.in_stride % 8 != 0) return "argument in_stride: below n_embd, or no multiple of 8";
  if (args.contributions == nullptr) return "argument contributions: null";
  if (args.out_stride < shape.n_embd) return "argument out_stride: below n_embd";
  for (int64_t i = 0; i < args.num_uses; ++i) {
    const ExpertMlpUse& use = args.uses[i];
    if (use.num_rows < 0 || use.group < 0) return "argument uses: a negative group or num_rows";
    if (use.num_rows > 0 && (use.record == nullptr || !Aligned(use.record, 128)))
      return "argument uses: a record not on 128 bytes";
    if (ExpertMlpWorkspaceBytes(shape, use.num_rows) > args.workspace_bytes) return "argument workspace: less than one use needs";
  }
  if (!Aligned(args.workspace, 256)) return "argument workspace: not on 256 bytes";
  return nullptr;
}

// Launches the tasks, each with the kernel for its number of rows: one launch for each kernel.
cudaError_t LaunchTasks(const ProductDevice& device, const std::vector<ProductTask>& tasks, ProductParams params, bool fused,
                        const Expansion& expansion, cudaStream_t stream) {
  for (const ProductKernel kernel : {ProductKernel::kFew, ProductKernel::kMma, ProductKernel::kWgmma}) {
    params.num_tasks = 0;
    for (const ProductTask& task : tasks) {
      if (ChooseExpertProduct(device, params.act_type, task.rows).kernel == kernel) params.tasks[params.num_tasks++] = task;
    }
    if (params.num_tasks == 0) continue;
    if (kernel != ProductKernel::kFew) {  // large tiles first, so that the last ones are small
      std::stable_sort(params.tasks, params.tasks + params.num_tasks,
                       [](const ProductTask& a, const ProductTask& b) { return a.rows > b.rows; });
    }
    if (const cudaError_t error = LaunchProducts(device, kernel, params, fused, expansion, stream); error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

// The uses of one batch: they fit the workspace and a launch's table.
cudaError_t RunBatch(const ProductDevice& device, const ExpertMlpArgs& args, std::vector<ProductTask>& tasks, int64_t rows,
                     cudaStream_t stream) {
  const ExpertShape& shape = args.shape;
  ProductParams params;
  params.offsets = args.offsets;
  params.act_type = args.in_type;

  params.first = shape.gate;
  params.second = shape.up;
  params.n = static_cast<int32_t>(shape.n_ff);
  params.k = static_cast<int32_t>(shape.n_embd);
  params.in = args.in;
  params.in_rows = args.in_rows;
  params.in_stride = args.in_stride;
  params.gather = args.rows;
  params.gathered = true;
  params.out = args.workspace;
  params.out_type = args.in_type;
  params.out_rows = rows;
  params.out_stride = shape.n_ff;
  params.alpha = args.alpha;
  params.limit = args.limit;
  params.up_offset = args.up_offset;
  if (const cudaError_t error = LaunchTasks(device, tasks, params, /*fused=*/true, args.expansion, stream); error != cudaSuccess)
    return error;

  params.first = shape.down;
  params.n = static_cast<int32_t>(shape.n_embd);
  params.k = static_cast<int32_t>(shape.n_ff);
  params.in = args.workspace;
  params.in_rows = rows;
  params.in_stride = shape.n_ff;
  params.gathered = false;
  params.out = args.contributions;
  params.out_type = args.out_type;
  params.out_rows = args.out_rows;
  params.out_stride = args.out_stride;
  params.scatter = args.outs;
  params.scattered = true;
  params.overlaps = true;
  return LaunchTasks(device, tasks, params, /*fused=*/false, args.expansion, stream);
}

}  // namespace

int64_t ExpertMlpWorkspaceBytes(const ExpertShape& shape, int64_t rows) { return (rows * shape.n_ff * 2 + 255) / 256 * 256; }

int64_t ExpertExpansionBytes(const ProductDevice& device, const ExpertShape& shape, DType act_type, int64_t most_rows) {
  const ProductKernel kernel = ChooseExpertProduct(device, act_type, most_rows).kernel;
  int64_t bytes = 0;
  if (NeedsExpansion(kernel, shape.gate.type, shape.up.type)) bytes = LeastExpansionBytes(shape.n_embd, 2);
  if (NeedsExpansion(kernel, shape.down.type)) bytes = std::max(bytes, LeastExpansionBytes(shape.n_ff, 1));
  return bytes;
}

const char* ExpertMlp(const ProductDevice& device, const ExpertMlpArgs& args, cudaStream_t stream) {
  if (args.num_uses == 0) return nullptr;
  if (const char* wrong = Check(device, args)) return wrong;
  std::vector<ProductTask> tasks;
  int64_t rows = 0;
  const auto run = [&]() -> const char* {
    if (tasks.empty()) return nullptr;
    const cudaError_t error = RunBatch(device, args, tasks, rows, stream);
    tasks.clear();
    rows = 0;
    if (error == cudaErrorInvalidValue) return "argument shape or expansion: a type without a kernel, or too few bytes";
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  };
  for (int64_t i = 0; i < args.num_uses; ++i) {
    const ExpertMlpUse& use = args.uses[i];
    if (use.num_rows == 0) continue;
    if (static_cast<int64_t>(tasks.size()) == kMaxTasks ||
        ExpertMlpWorkspaceBytes(args.shape, rows + use.num_rows) > args.workspace_bytes) {
      if (const char* error = run()) return error;
    }
    tasks.push_back({.weights = static_cast<const std::byte*>(use.record),
                     .group = use.group,
                     .rows = use.num_rows,
                     .first_row = static_cast<int32_t>(rows)});
    rows += use.num_rows;
  }
  return run();
}

}  // namespace ferry::cuda
