#pragma once

// What the kernels that rotate a row and store it in the KV cache share.

#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/rope_store.h"

namespace ferry::cuda {

// cos and sin of position * frequency: whole turns are taken off in double, the rest is below pi, where float is exact
// to 2^-24 of a turn.
__device__ inline void CosSin(int position, double frequency, float factor, float* cosine, float* sine) {
  constexpr double kTurn = 6.283185307179586476925287, kPerTurn = 0.159154943091895335768884;
  const double angle = position * frequency;
  const float rest = static_cast<float>(fma(-rint(angle * kPerTurn), kTurn, angle));
  sincosf(rest, sine, cosine);
  *cosine *= factor;
  *sine *= factor;
}

// d of Q8_0 from the largest magnitude of 32 numbers; NaN when one of them is. Mirrors KvQ8Scale
// (kernels/kv_cache_format.h).
__device__ inline __half Q8Scale(float largest, bool has_nan) {
  if (has_nan) return __ushort_as_half(0x7E00);
  return __float2half_rn(fminf(__fdiv_rn(largest, 127.0f), kMaxF16));
}
__device__ inline int8_t Q8Code(float x, float d) {
  if (!(d > 0)) return 0;
  return static_cast<int8_t>(fminf(fmaxf(rintf(__fdiv_rn(x, d)), -127.0f), 127.0f));
}

// Stores number `d` of a row of the cache. The lanes of a warp store 32 neighbours, which Q8_0 quantises together; in F16 some
// lanes may stay away.
__device__ __forceinline__ void StoreInCache(const DeviceKv& cache, bool is_key, int64_t cache_row, int d, float x) {
  std::byte* const plane = is_key ? cache.keys : cache.values;
  const int64_t at = cache_row * static_cast<int>(cache.head_dim) + d;
  if (cache.dtype == DType::kF16) {
    reinterpret_cast<__half*>(plane)[at] = __float2half_rn(x);
    return;
  }
  const bool has_nan = __any_sync(0xffffffffu, isnan(x));
  const __half scale = Q8Scale(WarpMax(fabsf(x)), has_nan);
  reinterpret_cast<int8_t*>(plane)[at] = Q8Code(x, __half2float(scale));
  const int64_t scales_offset = cache.num_blocks * cache.num_kv_heads * kKvBlock * static_cast<int>(cache.head_dim);
  if (threadIdx.x % kWarpSize == 0) reinterpret_cast<__half*>(plane + scales_offset)[at / kKvQuant] = scale;
}

}  // namespace ferry::cuda
