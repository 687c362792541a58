#pragma once

// The instructions of capability 9.0a behind products_wgmma.cu: warpgroup products, and the barriers between those who
// copy their operands and those who use them.

#include <cstdint>

#include "kernels/cuda/device_code.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FERRY_HAS_WGMMA 1
#else
#define FERRY_HAS_WGMMA 0
#endif

namespace ferry::cuda {

#if FERRY_HAS_WGMMA

// ------------------------------------------------------------------------------------------------------------- barriers

__device__ inline void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// What ordinary stores and cp.async wrote to shared memory is seen by the tensor cores from here on.
__device__ inline void FenceForTensorCores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
// Among the `kThreads` threads that name barrier `id`.
template <int kThreads>
__device__ inline void NamedBarrier(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

// Four 8x8 matrices of 16-bit elements, transposed on the way; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void StoreMatrix4Transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// ---------------------------------------------------------------------------------------------------- warpgroup products

// Registers of operands and sums are as the last product left them, or as they were written before this.
__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// A matrix of rows of 64 two-byte elements in shared memory, permuted in the 128-byte manner (16-byte chunk c of row r lies
// at chunk c ^ (r % 8)), on 1024 bytes. Adding 2 moves on by 16 elements.
// The high half is the same for all (the manner, and 1024 bytes from eight rows to the next), so Wgmma takes the low half.
#define FERRY_DESCRIPTOR_HIGH "0x40000040"
__device__ inline uint32_t RowsDescriptorLow(uint32_t shared) {
  constexpr uint32_t kUnused = 1 << 16;
  return kUnused | (shared & 0x3FFFF) >> 4;
}
__device__ inline uint64_t RowsDescriptor(uint32_t shared) { return 0x40000040ull << 32 | RowsDescriptorLow(shared); }

// sum [64 x kN] += a [64 x 16] b [16 x kN]: a in registers, b by the low half of its descriptor. Lane (g, q) of warp w
// holds in sum[4j + i] row 16w + g + 8 (i / 2), column 8j + 2q + i % 2.
template <int kN>
struct Wgmma;

#define FERRY_SUMS8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FERRY_SUMS16(i) FERRY_SUMS8(i), FERRY_SUMS8(i + 8)
#define FERRY_SUMS32(i) FERRY_SUMS16(i), FERRY_SUMS16(i + 16)
#define FERRY_NAMES0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FERRY_NAMES8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define FERRY_NAMES16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define FERRY_NAMES24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define FERRY_NAMES32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define FERRY_NAMES40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define FERRY_NAMES48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define FERRY_NAMES56 "%56, %57, %58, %59, %60, %61, %62, %63"

#define FERRY_WGMMA(n, names, a0, a1, a2, a3, b, ...)                                                                           \
  template <>                                                                                                                   \
  struct Wgmma<n> {                                                                                                             \
    __device__ static void Run(float (&d)[n / 2], const uint32_t* a, uint32_t rows) {                                           \
      asm volatile("{\n.reg .b64 b;\nmov.b64 b, {%" #b ", " FERRY_DESCRIPTOR_HIGH                                               \
                   "};\n"                                                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 \
                   "}, b, 1, 1, 1, 0;\n}\n"                                                                                     \
                   : __VA_ARGS__                                                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(rows));                                                    \
    }                                                                                                                           \
  };
FERRY_WGMMA(16, FERRY_NAMES0, 8, 9, 10, 11, 12, FERRY_SUMS8(0))
FERRY_WGMMA(32, FERRY_NAMES0 ", " FERRY_NAMES8, 16, 17, 18, 19, 20, FERRY_SUMS16(0))
FERRY_WGMMA(48, FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16, 24, 25, 26, 27, 28, FERRY_SUMS16(0), FERRY_SUMS8(16))
FERRY_WGMMA(64, FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24, 32, 33, 34, 35, 36, FERRY_SUMS32(0))
FERRY_WGMMA(80, FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24 ", " FERRY_NAMES32, 40, 41, 42, 43, 44,
            FERRY_SUMS32(0), FERRY_SUMS8(32))
FERRY_WGMMA(96, FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24 ", " FERRY_NAMES32 ", " FERRY_NAMES40, 48,
            49, 50, 51, 52, FERRY_SUMS32(0), FERRY_SUMS16(32))
FERRY_WGMMA(112,
            FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24 ", " FERRY_NAMES32 ", " FERRY_NAMES40
                         ", " FERRY_NAMES48,
            56, 57, 58, 59, 60, FERRY_SUMS32(0), FERRY_SUMS16(32), FERRY_SUMS8(48))
FERRY_WGMMA(128,
            FERRY_NAMES0 ", " FERRY_NAMES8 ", " FERRY_NAMES16 ", " FERRY_NAMES24 ", " FERRY_NAMES32 ", " FERRY_NAMES40
                         ", " FERRY_NAMES48 ", " FERRY_NAMES56,
            64, 65, 66, 67, 68, FERRY_SUMS32(0), FERRY_SUMS32(32))
#undef FERRY_WGMMA
#undef FERRY_DESCRIPTOR_HIGH

#endif  // FERRY_HAS_WGMMA

}  // namespace ferry::cuda
