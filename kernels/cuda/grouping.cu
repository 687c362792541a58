#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/grouping.h"
#include "kernels/cuda/overlapping_launch.cuh"

namespace ferry::cuda {
namespace {

constexpr int kGroupThreads = 512;
constexpr int kGroupWarps = kGroupThreads / kWarpSize;

// Counts of a chunk of kGroupThreads assignments for each expert.
// Grid: [chunks]. Block: kGroupThreads. counts [expert][chunk].
// Bound: the assignments' bytes, 4 each.
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
// Grid: [num_experts]. Block: one warp.
// Bound: num_experts * chunks * 8 bytes.
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

// Writes a chunk's entries at their places, and the first chunk the offsets. An entry's place among those of its
// expert: after what earlier chunks, then earlier warps, then earlier lanes hold, so the order is that of the
// assignments.
// Grid: [chunks]. Block: kGroupThreads. befores [expert][chunk] and totals [expert] as PrefixKernel leaves them;
// both null when there is one chunk, which then counts for itself.
// Bound: the assignments' bytes, 12 each.
__global__ void __launch_bounds__(kGroupThreads)
    WriteKernel(const int32_t* experts, int64_t assignments, int top_k, int num_experts, const int32_t* befores,
                const int32_t* totals, int32_t* offsets, int32_t* entry_rows, int32_t* entry_outs) {
  static_assert(kMaxExperts <= 2 * kGroupThreads);  // the scan takes two experts a thread
  __shared__ uint16_t of_warp[kGroupWarps][kMaxExperts];
  __shared__ int32_t starts[kMaxExperts], warp_sums[kWarpSize];
  AwaitLaunchesBefore();
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
  return LaunchOverlapping(WriteKernel, grid, kGroupThreads, stream, experts, assignments, static_cast<int>(top_k), count, counts,
                           totals, offsets, entry_rows, entry_outs);
}

}  // namespace ferry::cuda
