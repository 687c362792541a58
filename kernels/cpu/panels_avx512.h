#pragma once

// Sizes of the AVX-512 products, which walk panels of decoded weights, and what they broadcast. Only for *_avx512.cc, before any
// other header that includes <immintrin.h>.

#if !defined(__clang__)
// GCC 12 takes the undefined operand inside its own intrinsics for ours (gcc.gnu.org/PR105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ferry {
namespace {

constexpr int kPanelTokens = 6;   // 12 integer + 12 float sums, 2 weights; measured against 1 x 12 and 4 x 3
constexpr int kChunkBlocks = 96;  // columns of a panel decoded at once: 2 tiles x 96 x 576 bytes = 108 KiB; whole entries of 256
constexpr int kChunkRows = 256;   // rows whose sums wait in scratch: 32 KiB
// How far ahead weights are asked for while few rows use them, each line more than once: the processor seems to drop requests
// while its few miss buffers are busy, since a faster loop with one request a line reads slower. All into the second-level cache.
// The nearest is for one row, whose reads come fastest; with more rows it costs more than it brings. Best of several distances on
// Zen 4 (docs/tried.md).
constexpr int kPrefetchFar = 12288, kPrefetchAgain = 8192, kPrefetchNear = 4096;

// Memory to ask for while a stretch of columns is multiplied: `bytes` (a multiple of 64) with each block.
struct Ahead {
  const std::byte* from;
  int64_t bytes;
};

inline __m512i BroadcastGroup(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return _mm512_set1_epi32(four);
}

}  // namespace
}  // namespace ferry
