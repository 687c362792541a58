#include "kernels/cuda/routing.h"

#include "kernels/cuda/device_code.cuh"

namespace ferry::cuda {
namespace {

// ------------------------------------------------------------------------------------------------------------------ router

constexpr int kParts = 8;             // every dot product is cut into so many, whatever the rows: a single row then has
                                      // 8 * experts / 32 blocks to spread over, and its bits are those of a large batch
constexpr int kExpertsPerBlock = 32;
constexpr int kStep = 32;             // numbers of a dot product that are in shared memory at a time
constexpr int64_t kRowsPerPass = 4096;  // bounds the workspace: 16 MiB for 128 experts

// Columns of one part: a multiple of four, so that reads of 16 bytes stay aligned.
__host__ __device__ constexpr int64_t PartCols(int64_t cols) { return (cols + 4 * kParts - 1) / (4 * kParts) * 4; }

template <int kRowsPerThread>
struct RouterShape {
  static constexpr int kRowThreads = kRowsPerThread == 1 ? 4 : 16;
  static constexpr int kExpertThreads = kRowsPerThread == 1 ? 32 : 8;
  static constexpr int kThreads = kRowThreads * kExpertThreads;          // 128
  static constexpr int kRows = kRowThreads * kRowsPerThread;             // 4 or 64
  static constexpr int kExpertsPerThread = kExpertsPerBlock / kExpertThreads;  // 1 or 4
};

// Part `blockIdx.z` of the products of kRows rows and 32 experts: partials [part][row][expert].
// Grid: [ceil(rows / kRows), ceil(num_experts / 32), kParts]. Block: 128 threads, kRowsPerThread x kExpertsPerThread sums each,
// every sum over the part's columns in order with fused multiply-adds, so that both shapes give the same bits.
// Bound: 2 * rows * num_experts * cols flops at the rate of F32; for few rows, the weight's bytes.
template <int kRowsPerThread, typename Act>
__global__ void __launch_bounds__(128) RouterKernel(const Act* in, int64_t in_stride, bool in_aligned, const float* weight,
                                                    bool weight_aligned, float* partials, int64_t rows, int num_experts,
                                                    int cols) {
  using Shape = RouterShape<kRowsPerThread>;
  constexpr int kE = Shape::kExpertsPerThread, kR = kRowsPerThread;
  // Transposed, so that a thread reads its neighbouring rows or experts in one access; padded against bank conflicts.
  __shared__ __align__(16) float a[kStep][Shape::kRows + 4], b[kStep][kExpertsPerBlock + 4];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Shape::kRows;
  const int first_expert = blockIdx.y * kExpertsPerBlock;
  const int part_cols = static_cast<int>(PartCols(cols));
  const int first_col = blockIdx.z * part_cols, end_col = min(first_col + part_cols, cols);
  const int row_thread = threadIdx.x / Shape::kExpertThreads, expert_thread = threadIdx.x % Shape::kExpertThreads;
  float sums[kR][kE] = {};

  for (int col = first_col; col < end_col; col += kStep) {
    for (int i = threadIdx.x; i < Shape::kRows * (kStep / 4); i += Shape::kThreads) {
      const int r = i / (kStep / 4), c = i % (kStep / 4) * 4;
      const int count = first_row + r < rows ? end_col - col - c : 0;
      float v[4];
      Load4(in + (first_row + r) * in_stride + col + c, count, in_aligned, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) a[c + j][r] = v[j];
    }
    for (int i = threadIdx.x; i < kExpertsPerBlock * (kStep / 4); i += Shape::kThreads) {
      const int e = i / (kStep / 4), c = i % (kStep / 4) * 4;
      const int count = first_expert + e < num_experts ? end_col - col - c : 0;
      float v[4];
      Load4(weight + static_cast<int64_t>(first_expert + e) * cols + col + c, count, weight_aligned, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) b[c + j][e] = v[j];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float x[kR], w[kE];
#pragma unroll
      for (int r = 0; r < kR; ++r) x[r] = a[k][row_thread * kR + r];
#pragma unroll
      for (int e = 0; e < kE; ++e) w[e] = b[k][expert_thread * kE + e];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int e = 0; e < kE; ++e) sums[r][e] = fmaf(x[r], w[e], sums[r][e]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const int64_t row = first_row + row_thread * kR + r;
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      const int expert = first_expert + expert_thread * kE + e;
      if (row < rows && expert < num_experts) partials[(blockIdx.z * rows + row) * num_experts + expert] = sums[r][e];
    }
  }
}

constexpr int kRowsPerChoice = 4;  // warps of a block, one row each

__device__ inline uint64_t WarpMaxKey(uint64_t key) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, offset);
    key = other > key ? other : key;
  }
  return key;
}

// Adds the parts in order, then picks the best logit top_k times. A key holds value and id, so ties go to the lower id and
// every pick is a valid id; the lane that held the pick clears it. The softmax runs over the picks in their order.
// Grid: [ceil(rows / kRowsPerChoice)]. Block: kRowsPerChoice warps. kSlots: logits of a lane.
// Bound: rows * num_experts * kParts * 4 bytes through L2.
template <int kSlots>
__global__ void ChooseKernel(const float* partials, const float* bias, int32_t* experts, float* weights, int64_t rows,
                             int num_experts, int top_k) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerChoice + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (row >= rows) return;
  uint64_t keys[kSlots];
  float logits[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int expert = s * kWarpSize + lane;
    keys[s] = 0;
    logits[s] = 0.0f;
    if (expert >= num_experts) continue;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < kParts; ++part) sum += partials[(part * rows + row) * num_experts + expert];
    logits[s] = bias != nullptr ? sum + bias[expert] : sum;
    keys[s] = OrderedKey(logits[s], static_cast<uint32_t>(expert));
  }
  float best = 0.0f, total = 0.0f;
  for (int rank = 0; rank < top_k; ++rank) {
    uint64_t top = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) top = keys[s] > top ? keys[s] : top;
    top = WarpMaxKey(top);
    float logit = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (keys[s] == top) {
        logit = logits[s];
        keys[s] = 0;
      }
    }
    const int expert = static_cast<int>(IdOfKey(top));
    logit = __shfl_sync(0xffffffffu, logit, expert % kWarpSize);
    if (rank == 0) best = logit;
    const float weight = expf(logit - best);
    total += weight;
    if (lane == 0) {
      experts[row * top_k + rank] = expert;
      weights[row * top_k + rank] = weight;
    }
  }
  __syncwarp();
  for (int rank = lane; rank < top_k; rank += kWarpSize) weights[row * top_k + rank] /= total;
}

// ---------------------------------------------------------------------------------------------------------------- grouping

constexpr int kGroupThreads = 512;
constexpr int kGroupWarps = kGroupThreads / kWarpSize;

// Counts of a chunk of kGroupThreads assignments for each expert.
// Grid: [chunks]. Block: kGroupThreads. counts [expert][chunk]. Bound: the assignments' bytes, 4 each.
__global__ void CountKernel(const int32_t* experts, int64_t assignments, int num_experts, int32_t* counts) {
  __shared__ int32_t histogram[kMaxExperts];
  for (int e = threadIdx.x; e < num_experts; e += kGroupThreads) histogram[e] = 0;
  __syncthreads();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGroupThreads + threadIdx.x;
  const uint32_t expert = i < assignments ? static_cast<uint32_t>(experts[i]) : UINT32_MAX;
  if (expert < static_cast<uint32_t>(num_experts)) atomicAdd(&histogram[expert], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kGroupThreads) {
    counts[static_cast<int64_t>(e) * gridDim.x + blockIdx.x] = histogram[e];
  }
}

// Turns an expert's counts into how many of its entries earlier chunks hold; totals [expert].
// Grid: [num_experts]. Block: one warp. Bound: num_experts * chunks * 8 bytes.
__global__ void PrefixKernel(int32_t* counts, int64_t chunks, int32_t* totals) {
  int32_t* const own = counts + blockIdx.x * chunks;
  int32_t before = 0;
  for (int64_t first = 0; first < chunks; first += kWarpSize) {
    const int64_t chunk = first + threadIdx.x;
    const int32_t count = chunk < chunks ? own[chunk] : 0, inclusive = WarpInclusiveScan(count);
    if (chunk < chunks) own[chunk] = before + inclusive - count;
    before += __shfl_sync(0xffffffffu, inclusive, kWarpSize - 1);
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

// Writes a chunk's entries at their places, and the first chunk the offsets. An entry's place among those of its expert:
// after what earlier chunks, then earlier warps, then earlier lanes hold, so the order is that of the assignments.
// Grid: [chunks]. Block: kGroupThreads. befores [expert][chunk] and totals [expert] as PrefixKernel leaves them; both null
// when there is one chunk, which then counts for itself. Bound: the assignments' bytes, 12 each.
__global__ void __launch_bounds__(kGroupThreads) WriteKernel(const int32_t* experts, int64_t assignments, int top_k,
                                                             int num_experts, const int32_t* befores, const int32_t* totals,
                                                             int32_t* offsets, int32_t* entry_rows, int32_t* entry_outs) {
  static_assert(kMaxExperts <= 2 * kGroupThreads);  // the scan takes two experts a thread
  __shared__ uint16_t of_warp[kGroupWarps][kMaxExperts];
  __shared__ int32_t starts[kMaxExperts], warp_sums[kWarpSize];
  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = thread % kWarpSize;
  for (int i = thread; i < kGroupWarps * num_experts; i += kGroupThreads) of_warp[i / num_experts][i % num_experts] = 0;
  if (thread < kWarpSize) warp_sums[thread] = 0;
  __syncthreads();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGroupThreads + thread;
  const uint32_t expert = i < assignments ? static_cast<uint32_t>(experts[i]) : UINT32_MAX;
  const bool valid = expert < static_cast<uint32_t>(num_experts);
  const uint32_t peers = __match_any_sync(0xffffffffu, expert), earlier = peers & ((1u << lane) - 1);
  if (valid && earlier == 0) of_warp[warp][expert] = static_cast<uint16_t>(__popc(peers));
  __syncthreads();

  const auto total_of = [&](int e) {
    if (e >= num_experts) return 0;
    if (totals != nullptr) return static_cast<int>(totals[e]);
    int total = 0;
    for (int w = 0; w < kGroupWarps; ++w) total += of_warp[w][e];
    return total;
  };
  const int first = total_of(2 * thread), second = total_of(2 * thread + 1);
  int inclusive = WarpInclusiveScan(first + second);
  if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) warp_sums[lane] = WarpInclusiveScan(warp_sums[lane]);
  __syncthreads();
  if (warp > 0) inclusive += warp_sums[warp - 1];
  const int start = inclusive - first - second;
  if (2 * thread < num_experts) starts[2 * thread] = start;
  if (2 * thread + 1 < num_experts) starts[2 * thread + 1] = start + first;
  if (blockIdx.x == 0) {
    if (thread == 0) offsets[0] = 0;
    if (2 * thread < num_experts) offsets[2 * thread + 1] = start + first;
    if (2 * thread + 1 < num_experts) offsets[2 * thread + 2] = inclusive;
  }
  __syncthreads();
  if (!valid) return;
  int place = starts[expert] + __popc(earlier);
  if (befores != nullptr) place += befores[static_cast<int64_t>(expert) * gridDim.x + blockIdx.x];
  for (int w = 0; w < warp; ++w) place += of_warp[w][expert];
  entry_rows[place] = static_cast<int32_t>(i / top_k);
  entry_outs[place] = static_cast<int32_t>(i);
}

}  // namespace

int64_t RouteWorkspaceBytes(int64_t rows, int64_t num_experts) {
  return kParts * (rows < kRowsPerPass ? rows : kRowsPerPass) * num_experts * 4;
}

cudaError_t LaunchRoute(const RouteArgs& args, cudaStream_t stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts || args.top_k < 1 || args.top_k > args.num_experts ||
      args.in.cols > 1 << 24) {
    return cudaErrorInvalidValue;
  }
  const int num_experts = static_cast<int>(args.num_experts), top_k = static_cast<int>(args.top_k);
  const int cols = static_cast<int>(args.in.cols);
  float* const partials = static_cast<float*>(args.workspace);
  for (int64_t first = 0; first < args.in.rows; first += kRowsPerPass) {
    const int64_t rows = args.in.rows - first < kRowsPerPass ? args.in.rows - first : kRowsPerPass;
    FERRY_CUDA_RETURN_IF_ERROR(WithActivation(args.in.dtype, [&](auto type) {
      using Act = decltype(type);
      const Act* const in = static_cast<const Act*>(args.in.data) + first * args.in.stride;
      const bool in_aligned = RowsAligned4<Act>(in, args.in.stride), weight_aligned = RowsAligned4<float>(args.weight, cols);
      const auto launch = [&](auto rows_per_thread) {
        using Shape = RouterShape<rows_per_thread()>;
        dim3 grid;
        FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, Shape::kRows), CeilDiv(num_experts, kExpertsPerBlock), kParts, &grid));
        RouterKernel<rows_per_thread(), Act><<<grid, Shape::kThreads, 0, stream>>>(
            in, args.in.stride, in_aligned, args.weight, weight_aligned, partials, rows, num_experts, cols);
        return cudaGetLastError();
      };
      if (rows <= 64) return launch(std::integral_constant<int, 1>{});
      return launch(std::integral_constant<int, 4>{});
    }));
    dim3 grid;
    FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, kRowsPerChoice), 1, 1, &grid));
    const auto choose = [&](auto slots) {
      ChooseKernel<slots()><<<grid, kRowsPerChoice * kWarpSize, 0, stream>>>(
          partials, args.bias, args.experts + first * top_k, args.weights + first * top_k, rows, num_experts, top_k);
      return cudaGetLastError();
    };
    if (num_experts <= 32) {
      FERRY_CUDA_RETURN_IF_ERROR(choose(std::integral_constant<int, 1>{}));
    } else if (num_experts <= 128) {
      FERRY_CUDA_RETURN_IF_ERROR(choose(std::integral_constant<int, 4>{}));
    } else if (num_experts <= 512) {
      FERRY_CUDA_RETURN_IF_ERROR(choose(std::integral_constant<int, 16>{}));
    } else {
      FERRY_CUDA_RETURN_IF_ERROR(choose(std::integral_constant<int, 32>{}));
    }
  }
  return cudaSuccess;
}

int64_t GroupWorkspaceBytes(int64_t rows, int64_t top_k, int64_t num_experts) {
  return (CeilDiv(rows * top_k, kGroupThreads) + 1) * num_experts * 4;
}

cudaError_t LaunchGroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                int32_t* entry_rows, int32_t* entry_outs, void* workspace, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (num_experts < 1 || num_experts > kMaxExperts || top_k < 1 || rows > 0x7fffffff / top_k) return cudaErrorInvalidValue;
  const int64_t assignments = rows * top_k, chunks = CeilDiv(assignments, kGroupThreads);
  const int count = static_cast<int>(num_experts);
  int32_t *counts = nullptr, *totals = nullptr;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(chunks, 1, 1, &grid));
  if (chunks > 1) {
    counts = static_cast<int32_t*>(workspace);
    totals = counts + chunks * num_experts;
    CountKernel<<<grid, kGroupThreads, 0, stream>>>(experts, assignments, count, counts);
    FERRY_CUDA_RETURN_IF_ERROR(cudaGetLastError());
    PrefixKernel<<<count, kWarpSize, 0, stream>>>(counts, chunks, totals);
    FERRY_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  }
  WriteKernel<<<grid, kGroupThreads, 0, stream>>>(experts, assignments, static_cast<int>(top_k), count, counts, totals, offsets,
                                                  entry_rows, entry_outs);
  return cudaGetLastError();
}

}  // namespace ferry::cuda
