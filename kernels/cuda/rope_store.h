#pragma once

// Rotary embedding and the write into the block KV cache, in one reading of the q | k | v rows.

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

inline constexpr int kKvBlock = 32;  // tokens of a block: kKvBlockTokens
inline constexpr int kKvQuant = 32;  // numbers under one scale in Q8_0: kKvQuantBlock

// One layer's KV cache: ops.h's KvLayer. Planes [block][kv_head][token][head_dim], for Q8_0 followed by scales
// [block][kv_head][token][head_dim / 32].
struct DeviceKv {
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
  DType dtype = DType::kF16;  // F16 or Q8_0
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0, head_dim = 0;
};

// Positions and block tables of a batch's rows. All device memory; entries of rows from the call's first one on.
struct DevicePlaces {
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* table_starts = nullptr;  // [rows] index in `tables` of the block table of the row's sequence
  const int32_t* table_sizes = nullptr;   // [rows]
  const int32_t* tables = nullptr;
};

struct RopeStoreArgs {
  DevicePlaces places;
  const double* frequencies = nullptr;  // device, [num_dims / 2], radians per position
  int num_dims = 0;                     // even, <= head_dim
  bool neighbours = false;              // pairs are (2i, 2i + 1) instead of (i, i + num_dims / 2)
  const float* q_norm = nullptr;        // [head_dim] F32: RMSNorm of each head before it is turned; null: none. Likewise k_norm
  const float* k_norm = nullptr;
  float norm_epsilon = 0;
  float attention_factor = 1;  // multiplies cos and sin
  int64_t num_heads = 0;
  DeviceRows qkv;    // [rows, (num_heads + 2 kv heads) * head_dim], any element type
  DeviceRows q_out;  // [rows, num_heads * head_dim], an activation type
  DeviceKv cache;    // head_dim a multiple of 32, at most 256
};

// Pair i of a head at position p turns by p * frequencies[i]; the angle is reduced in double, so
// that long contexts lose nothing. Two rows of a call must not share a place in the cache.
cudaError_t LaunchRopeStore(const RopeStoreArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
