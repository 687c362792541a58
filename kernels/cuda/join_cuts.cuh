#pragma once

// The second half of decode attention: what the cuts of a row's positions left is added up. A cut of a (row, query head) has its
// largest score (times scale_log2), the sum of its weights, and its values' sums, weighted and not yet divided.

#include "kernels/cuda/attention_device.cuh"

namespace ferry::cuda {

// Threads of a block, and lanes that share a cut, four columns each: a power of two. Of few heads many blocks with few columns
// each are wanted, since a block waits for its cuts one after the other; of many heads each block looks at all cuts' weights
// anew.
template <int kBlockThreads, int kCutLanes>
struct JoinShape {
  static constexpr int kThreads = kBlockThreads, kLanes = kCutLanes, kColumns = 4 * kLanes, kGroups = kThreads / kLanes;
  // Groups of a warp are added by shuffles, the others through shared memory.
  static constexpr int kParts = kLanes < kWarpSize ? kThreads / kWarpSize : kGroups;
};

// Columns [first_column, first_column + kColumns) of `values` of one (row, head): groups of kLanes threads take every kGroups-th
// cut, then the groups are added in a fixed order. `sums` [cuts][values], `sink` times log2(e), or -infinity.
// Bound: (values + 2) * 4 bytes a cut through L2.
template <typename Shape, typename Act>
__device__ __forceinline__ void JoinCuts(const float2* stats, const float* sums, int cuts, int values, int first_column,
                                         float sink, Act* out) {
  constexpr int kLanes = Shape::kLanes, kThreads = Shape::kThreads;
  __shared__ float largest_of[kWarpSize], total_of[kWarpSize];
  __shared__ float4 parts[Shape::kParts][kLanes];
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, column = first_column + lane * 4;
  const auto part_of = [&](int c) { return *reinterpret_cast<const float4*>(sums + static_cast<int64_t>(c) * values + column); };
  // What a thread needs of its first cuts is asked for at once, before the block agrees on the largest score: the time of a join
  // of few heads is that of loads after each other.
  constexpr int kAhead = 4;
  float4 parts_ahead[kAhead] = {};
  float scores_ahead[kAhead] = {};
  const int first = threadIdx.x;
  const float2 first_stats = first < cuts ? stats[first] : float2{-INFINITY, 0.0f};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int c = group + i * Shape::kGroups;
    if (c < cuts && column < values) parts_ahead[i] = part_of(c), scores_ahead[i] = stats[c].x;
  }

  float largest = first_stats.x;
  for (int c = first + kThreads; c < cuts; c += kThreads) largest = fmaxf(largest, stats[c].x);
  largest = BlockMax(largest, largest_of);
  const float top = fmaxf(largest, sink), base = top == -INFINITY ? 0.0f : top;
  float total = first_stats.y * Exp2(first_stats.x - base);
  for (int c = first + kThreads; c < cuts; c += kThreads) total = fmaf(stats[c].y, Exp2(stats[c].x - base), total);
  total = BlockSum(total, total_of) + Exp2(sink - base);

  float sum[4] = {};
  const auto add = [&](float score, const float4& part) {
    const float factor = Exp2(score - base);
    sum[0] = fmaf(part.x, factor, sum[0]);
    sum[1] = fmaf(part.y, factor, sum[1]);
    sum[2] = fmaf(part.z, factor, sum[2]);
    sum[3] = fmaf(part.w, factor, sum[3]);
  };
  if (column < values) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (group + i * Shape::kGroups < cuts) add(scores_ahead[i], parts_ahead[i]);
    }
#pragma unroll 8
    for (int c = group + kAhead * Shape::kGroups; c < cuts; c += Shape::kGroups) add(stats[c].x, part_of(c));
  }
#pragma unroll
  for (int across = kLanes; across < kWarpSize; across *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], across);
  }
  constexpr int kGroupsOfPart = Shape::kGroups / Shape::kParts;
  if (group % kGroupsOfPart == 0) parts[group / kGroupsOfPart][lane] = float4{sum[0], sum[1], sum[2], sum[3]};
  __syncthreads();
  if (group != 0 || column >= values) return;
#pragma unroll
  for (int i = 1; i < Shape::kParts; ++i) {
    const float4 part = parts[i][lane];
    sum[0] += part.x;
    sum[1] += part.y;
    sum[2] += part.z;
    sum[3] += part.w;
  }
  const float quotients[4] = {sum[0] / total, sum[1] / total, sum[2] / total, sum[3] / total};
  Store4(out + column, 4, true, quotients);
}

}  // namespace ferry::cuda
