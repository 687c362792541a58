#pragma once

// Warpgroup products of 64 rows and columns in F16, for attention.

#include "kernels/cuda/wgmma.cuh"

namespace ferry::cuda {

#if FERRY_HAS_WGMMA

// Barriers are as BarrierInit made them for copies and tensor cores too.
__device__ inline void FenceBarrierInit() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives when what this thread has copied by cp.async so far is in shared memory: one of the barrier's arrivals. Who waits for
// the barrier calls FenceForTensorCores.
__device__ inline void BarrierArriveOfCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// A tile for WgmmaF16: rows of 128 bytes, permuted in the 128-byte manner, on 1024 bytes; eight rows are 1024 bytes. Of
// keys, adding 2 moves on by 16 dimensions; of values, adding 128 moves on by 16 positions.
__device__ inline uint64_t TileDescriptor(const void* tile) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = 1024ull >> 4 << 32, kUnused = 1ull << 16;
  return kSwizzle128 | kEightRows | kUnused | (SharedAddress(tile) & 0x3FFFF) >> 4;
}

// sum [64 x 64] (+)= a [64 x 16] b [16 x 64] in F16, a in registers. kTransposed: b's rows of 64 run along its columns
// (values), otherwise along the sum (keys).
template <int kTransposed>
__device__ inline void WgmmaF16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24
      "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}\n"
      : FERRY_SUMS32(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
}

// The same with a [64 x 16] in shared memory as well: a tile of rows, as of keys.
__device__ inline void WgmmaSharedF16(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24
      "}, %32, %33, add, 1, 1, 0, 0;\n}\n"
      : FERRY_SUMS32(0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// Keeps what computes the registers before this, and what reads them behind it: the compiler takes a product's sums for
// final when the instruction is issued, and it would move a softmax behind the wait that it is meant to fill.
template <int kCount>
__device__ inline void Pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

#endif  // FERRY_HAS_WGMMA

}  // namespace ferry::cuda
