#pragma once

// What the kernels of latent attention share.

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_cuts.h"

namespace ferry::cuda {

inline constexpr int kWideRows = 48;  // from so many pairs that can share a block it takes 64 of them

struct LatentParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  const std::byte* cache;
  int64_t num_blocks;
  int dim, values, num_heads;
  int window;  // 0: none
  const float* sinks;
  float scale_log2;
  // Prefill.
  const int32_t* table;
  int table_size, first_position;
  int64_t pairs;  // rows * num_heads
  // Decode.
  DevicePlaces places;
  int most_cuts, max_cuts;  // max_cuts: room for those of a row
  float* sums;              // [row][head][max_cuts][values], not yet divided
  float2* stats;            // [row][head][max_cuts]: largest score (times scale_log2), sum of weights
};

// What a row's block must know before it can ask for a key, by one load of a warp.
struct RowPlace {
  int position, table_start, table_size;
};
__device__ __forceinline__ RowPlace PlaceOf(const DevicePlaces& places, int64_t row) {
  const int lane = threadIdx.x % kWarpSize;
  const int32_t number = (lane == 0 ? places.positions : lane == 1 ? places.table_starts : places.table_sizes)[row];
  return {__shfl_sync(0xffffffffu, number, 0), __shfl_sync(0xffffffffu, number, 1), __shfl_sync(0xffffffffu, number, 2)};
}

// latent_attention_wgmma.cu: on a GPU and in a build with warpgroup products, for keys of 576 F16 numbers, 512 of them values.
// Prefill's grid is [ceil(pairs / 64)], decode's [max_cuts, ceil(num_heads / 64), rows].
cudaError_t LaunchLatentWgmma(const LatentParams& params, DType act, bool decode, dim3 grid, cudaStream_t stream);

// latent_few_heads.cu: decode of fewer than kWideRows heads over keys of 576 F16 numbers, 512 of them values, on a GPU whose
// blocks can have `shared_bytes`. The grid is [max_cuts, ceil(num_heads / 16), rows].
bool LatentFewHeadsTakes(const AttentionArgs& args, int shared_bytes);
cudaError_t LaunchLatentFewHeads(const LatentParams& params, DType act, dim3 grid, cudaStream_t stream);

}  // namespace ferry::cuda
