#pragma once

// Device functions that several kernels share: number formats, reductions in a fixed order, and the instructions behind
// ldmatrix, mma and cp.async with their replacements on sm_75.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

// ------------------------------------------------------------------------------------------------------------- numbers

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float ToFloat(__half value) { return __half2float(value); }

inline constexpr float kMaxF16 = 65504.0f;
// Rounds to nearest even. To F16 a finite value that does not fit becomes the largest that does; NaN stays.
template <typename T>
__device__ inline T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half FromFloat<__half>(float value) {
  if (value > kMaxF16) value = kMaxF16;
  if (value < -kMaxF16) value = -kMaxF16;
  return __float2half_rn(value);
}

// Four consecutive elements. `aligned`: their address is a multiple of four elements' bytes.
template <typename T>
struct Four {
  T value[4];
};
template <typename T>
__device__ inline void Load4(const T* source, int count, bool aligned, float (&out)[4]) {
  if (aligned && count >= 4) {
    alignas(16) Four<T> four;
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<uint4*>(&four) = *reinterpret_cast<const uint4*>(source);
    } else {
      *reinterpret_cast<uint2*>(&four) = *reinterpret_cast<const uint2*>(source);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = ToFloat(four.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = i < count ? ToFloat(source[i]) : 0.0f;
  }
}
template <typename T>
__device__ inline void Store4(T* target, int count, bool aligned, const float (&in)[4]) {
  if (aligned && count >= 4) {
    alignas(16) Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.value[i] = FromFloat<T>(in[i]);
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(&four);
    } else {
      *reinterpret_cast<uint2*>(target) = *reinterpret_cast<const uint2*>(&four);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) target[i] = FromFloat<T>(in[i]);
    }
  }
}

// Whether rows of T at `data`, `stride` elements apart, may be read four elements at a time.
template <typename T>
inline bool RowsAligned4(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}

// Calls f(T{}) with the C++ type of `dtype`; cudaErrorInvalidValue for a type that is not F32, BF16 or F16.
template <typename F>
cudaError_t WithElement(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(__nv_bfloat16{});
    case DType::kF16:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}
// The same for the types of activations alone.
template <typename F>
cudaError_t WithActivation(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBF16:
      return f(__nv_bfloat16{});
    case DType::kF16:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

// ---------------------------------------------------------------------------------------------------------- reductions

// The sum over a warp, the same in every lane and the same bits in every run.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}
// Inclusive prefix sum over a warp.
__device__ inline int WarpInclusiveScan(int value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}
// Sum over a one-dimensional block of whole warps, the same in every thread. `scratch`: 32 floats of shared memory,
// free again after the next barrier.
__device__ inline float BlockSum(float value, float* scratch) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = WarpSum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return WarpSum(lane < warps ? scratch[lane] : 0.0f);
}
__device__ inline float BlockMax(float value, float* scratch) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = WarpMax(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return WarpMax(lane < warps ? scratch[lane] : -INFINITY);
}

// A number as an integer of the same order, so that the larger float has the larger key; every NaN comes first. With
// ~id in the low half, keys are unique, order by value, and equal values go to the lower id.
__device__ inline uint32_t OrderedKey(float value) {
  if (isnan(value)) return 0;
  if (value == 0.0f) value = 0.0f;  // -0 and 0 are equal
  const uint32_t bits = __float_as_uint(value);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}
__device__ inline uint64_t OrderedKey(float value, uint32_t id) { return static_cast<uint64_t>(OrderedKey(value)) << 32 | ~id; }
__device__ inline uint32_t IdOfKey(uint64_t key) { return ~static_cast<uint32_t>(key); }

// ---------------------------------------------------------------------------------------------------------
// instructions

__device__ inline uint32_t SharedAddress(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// 16 bytes from global to shared memory, zeros when not `valid` (the source is then not read).
__device__ inline void CopyAsync16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global), "r"(bytes) : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}
__device__ inline void CopyAsyncCommit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `kPending` committed groups of this thread are still in flight.
template <int kPending>
__device__ inline void CopyAsyncWait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void LoadMatrix4(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadMatrix4Transposed(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c [16x8] += a [16x16] b [16x8], F16 in and F32 out.
__device__ inline void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// The same in BF16; capability 8.0.
__device__ inline void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ inline uint32_t PackF16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 2^x by the special function unit (2 ulp); 2^-inf is 0.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ferry::cuda
