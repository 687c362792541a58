#pragma once

// Latent attention's way into the cache: a token's latent vector, normalised and rotated, and the rotated parts of its queries.

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope_store.h"

namespace ferry::cuda {

struct LatentStoreArgs {
  DevicePlaces places;
  const double* frequencies = nullptr;  // device, [num_dims / 2], radians per position
  int num_dims = 0;                     // rotated: even, cache.head_dim - rank
  bool neighbours = false;              // pairs are (2i, 2i + 1) instead of (i, i + num_dims / 2)
  float attention_factor = 1;           // multiplies cos and sin
  const float* norm = nullptr;          // [rank] F32
  float norm_epsilon = 0;
  int64_t num_heads = 0;
  DeviceRows latent;  // F32 [rows, rank | num_dims]
  DeviceRows q;       // [rows, num_heads * (some | num_dims)], an activation type
  DeviceRows q_out;   // [rows, num_heads * (rank | num_dims)], of q's type; the first `rank` of each head stay
  DeviceKv cache;     // one kv head of rank + num_dims <= kMaxLatentHeadDim numbers, for Q8_0 a multiple of 32; keys alone
};

// Two rows of a call must not share a place in the cache.
cudaError_t LaunchLatentStore(const LatentStoreArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
