// AVX-512 with VNNI: the integer products, and the table.
//
// vpdpbusd adds four products of unsigned by signed bytes into each of 16 lanes. So 16 rows of weights lie across the lanes,
// four columns a register, and four activations are broadcast to all lanes: eight instructions for a tile of 16 x 32 and one
// row of activations, with the sum of every row complete in its lane and nothing to add across lanes.
//
// A tile as stored has the columns of one row together, so it is transposed in registers (4 x 4 groups of four bytes), which
// leaves the rows in the order kLaneOfRow; scales are permuted to match and sums put right once at the end.
//
// Up to kFusedRows rows (decode) a tile is decoded into registers and used at once: what binds is memory. More rows (prefill)
// use a panel of 32 weight rows decoded once into the second-level cache, in registers of 2 x 6 sums: what binds is the rate of
// vpdpbusd. Both add block after block, in one order, with the same operations: the same bits.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__AVX512VNNI__)  // another processor family, or a compiler without the flags

namespace ferry {
const CpuKernels* Avx512Kernels() { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/integer_formats_avx512.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/vector_kernels.h"

namespace ferry {
namespace {

constexpr int kFusedRows = 16;  // 8 weights and a float sum for each row, integer sums in passing: 28 registers

constexpr int64_t kPanelCodeBytes = int64_t{kPanelTiles} * kChunkBlocks * kGroups * 64;
constexpr int64_t kPanelScaleBytes = int64_t{kPanelTiles} * kChunkBlocks * 64;
static_assert(kPanelCodeBytes + kPanelScaleBytes + kChunkRows * kPanelRows * 4 <= kPanelScratchBytes);

// ------------------------------------------------------------------------------------------------------ few rows: fused

// One tile (all columns) times kTokens rows; sums [kTokens][16], in order of output. `next`: codes that come after these.
template <typename Type, int kTokens>
inline void FusedTile(const std::byte* codes, const std::byte* scales, const std::byte* next, const std::byte* next_scales,
                      int64_t num_blocks, const std::byte* const* rows, float* sums) {
  constexpr int kTileBytes = kLanes * Type::kCodeBytes, kTileScaleBytes = kLanes * Type::kScaleBytes;
  const auto ask_for = [&](int64_t block) {
    const std::byte* ahead = block < num_blocks ? codes + block * kTileBytes : next + (block - num_blocks) * kTileBytes;
    for (int i = 0; i < kTileBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
  };
  __m512 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  for (int64_t block = 0; block < num_blocks; ++block) {
    const std::byte* tile = codes + block * kTileBytes;
    const int64_t ahead = block + kPrefetchFar / kTileBytes;
    _mm_prefetch(ahead < num_blocks ? scales + ahead * kTileScaleBytes : next_scales + (ahead - num_blocks) * kTileScaleBytes,
                 _MM_HINT_T0);
    ask_for(ahead);
    ask_for(block + kPrefetchAgain / kTileBytes);
    if constexpr (kTokens == 1) ask_for(block + kPrefetchNear / kTileBytes);
    __m512i w[kGroups];
    Type::Decode(tile, w);
    const __m512i scale = Type::Scales(scales + block * kTileScaleBytes);
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* in = rows[t] + block * BlockBytes(Type::kKind);
      const int8_t* x = CodesOf(in);
      // Chains of four, since longer ones wait for themselves; whole numbers, so the order does not matter.
      const auto dots_of = [&](const int8_t* part, __m512i sum) {
        __m512i second = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int g = 0; g < kGroups / 2; ++g) {
          sum = _mm512_dpbusd_epi32(sum, w[g], BroadcastGroup(part + 4 * g));
          second = _mm512_dpbusd_epi32(second, w[4 + g], BroadcastGroup(part + 16 + 4 * g));
        }
        return _mm512_add_epi32(sum, second);
      };
      __m512i whole = dots_of(x, _mm512_set1_epi32(*OffsetOf(in, Type::kKind)));
      if constexpr (Type::kKind == Activations::kWide) {
        whole = _mm512_add_epi32(_mm512_slli_epi32(whole, 7), dots_of(x + kBlock, _mm512_setzero_si512()));
      }
      const __m512 dots = _mm512_cvtepi32_ps(whole);
      acc[t] = _mm512_fmadd_ps(dots, Type::Product(scale, ScaleOf(in, Type::kKind)), acc[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    _mm512_storeu_ps(sums + t * kLanes, _mm512_permutexvar_ps(LaneOfRow(), acc[t]));
  }
}

template <typename Type, int kTokens>
void FusedProduct(const PanelProduct& p) {
  const std::byte* rows[kTokens];
  for (int t = 0; t < kTokens; ++t) rows[t] = RowAt(p, t);
  alignas(64) float sums[kTokens * kLanes];
  const int64_t code_bytes = p.num_blocks * kLanes * Type::kCodeBytes;
  const int64_t scale_bytes = p.num_blocks * kLanes * Type::kScaleBytes;
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    const std::byte* codes = p.codes + tile * code_bytes;
    const std::byte* scales = p.scales + tile * scale_bytes;
    const bool jumps = p.next != nullptr && (tile + 1) * kLanes >= p.num_outputs;
    FusedTile<Type, kTokens>(codes, scales, jumps ? p.next : codes + code_bytes, jumps ? p.next_scales : scales + scale_bytes,
                             p.num_blocks, rows, sums);
    StoreTile(p, 0, kTokens, tile, sums, kLanes);
  }
}

// ------------------------------------------------------------------------------------------------------ many rows: panel
// dots[tile][t] += eight groups of one block's weights, [tile][group][64 bytes], times their codes of each row.
template <int kTiles, int kTokens>
[[gnu::always_inline]] inline void MultiplyBlock(const std::byte* weights, const std::byte* const* rows, int64_t first_code,
                                                 __m512i (&dots)[kTiles][kTokens]) {
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    __m512i w[kTiles];
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) {
      w[tile] = _mm512_load_si512(weights + (tile * kGroups + g) * 64);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512i x = BroadcastGroup(CodesOf(rows[t] + first_code) + 4 * g);
#pragma GCC unroll 2
      for (int tile = 0; tile < kTiles; ++tile) dots[tile][t] = _mm512_dpbusd_epi32(dots[tile][t], w[tile], x);
    }
  }
}

// sums [kTokens][kTiles * 16] += panel * rows.
template <typename Type, int kTiles, int kTokens>
void PanelBlocks(const std::byte* codes, const std::byte* scales, int64_t num_blocks, const std::byte* const* rows, Ahead ahead,
                 float* sums) {
  constexpr int64_t kBlockBytes = BlockBytes(Type::kKind);
  __m512 acc[kTiles][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) acc[tile][t] = _mm512_load_ps(sums + (t * kTiles + tile) * kLanes);
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t i = 0; i < ahead.bytes; i += 64) _mm_prefetch(ahead.from + block * ahead.bytes + i, _MM_HINT_T1);
    __m512i dots[kTiles][kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512i offset = _mm512_set1_epi32(*OffsetOf(rows[t] + block * kBlockBytes, Type::kKind));
#pragma GCC unroll 2
      for (int tile = 0; tile < kTiles; ++tile) dots[tile][t] = offset;
    }
    constexpr int kParts = Type::kKind == Activations::kWide ? 2 : 1;  // high codes, then low ones
    const std::byte* weights = codes + block * kTiles * kGroups * 64;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      // Unknown to the compiler, which would otherwise keep the first part's weights in registers that it does not have.
      asm("" : "+r"(weights));
      MultiplyBlock<kTiles, kTokens>(weights, rows, block * kBlockBytes + part * kBlock, dots);
      if (part + 1 == kParts) break;
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int tile = 0; tile < kTiles; ++tile) dots[tile][t] = _mm512_slli_epi32(dots[tile][t], 7);
      }
    }
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) {
      const __m512i scale = _mm512_load_si512(scales + (block * kTiles + tile) * 64);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const float* in_scale = ScaleOf(rows[t] + block * kBlockBytes, Type::kKind);
        acc[tile][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[tile][t]), Type::Product(scale, in_scale), acc[tile][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) _mm512_store_ps(sums + (t * kTiles + tile) * kLanes, acc[tile][t]);
  }
}

template <typename Type, int kTiles>
void PanelGroup(const std::byte* codes, const std::byte* scales, int64_t num_blocks, const std::byte* const* rows,
                int64_t num_rows, Ahead ahead, float* sums) {
  switch (num_rows) {
    case 1:
      return PanelBlocks<Type, kTiles, 1>(codes, scales, num_blocks, rows, ahead, sums);
    case 2:
      return PanelBlocks<Type, kTiles, 2>(codes, scales, num_blocks, rows, ahead, sums);
    case 3:
      return PanelBlocks<Type, kTiles, 3>(codes, scales, num_blocks, rows, ahead, sums);
    case 4:
      return PanelBlocks<Type, kTiles, 4>(codes, scales, num_blocks, rows, ahead, sums);
    case 5:
      return PanelBlocks<Type, kTiles, 5>(codes, scales, num_blocks, rows, ahead, sums);
    default:
      return PanelBlocks<Type, kTiles, 6>(codes, scales, num_blocks, rows, ahead, sums);
  }
}

template <typename Type, int kTiles>
void DecodedProduct(const PanelProduct& p) {
  std::byte* const codes = p.scratch;
  std::byte* const scales = codes + kPanelCodeBytes;
  float* const sums = reinterpret_cast<float*>(scales + kPanelScaleBytes);
  const __m512i order = LaneOfRow();
  // The next panel is asked for little by little while this one is used, so that decoding it need not wait for memory. In
  // bursts, between groups of rows, it would: they fill the miss buffers.
  const int64_t panel_bytes = kTiles * p.num_blocks * kLanes * Type::kCodeBytes;
  const std::byte* const next = p.next != nullptr ? p.next : p.codes + panel_bytes;
  const int64_t multiplied_blocks = (p.num_rows + kPanelTokens - 1) / kPanelTokens * p.num_blocks;
  const int64_t ahead_bytes = (panel_bytes / 64 + multiplied_blocks - 1) / multiplied_blocks * 64;
  int64_t asked_bytes = 0;
  for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
    const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
    for (int64_t i = 0; i < num_rows * kTiles; ++i) _mm512_store_ps(sums + i * kLanes, _mm512_setzero_ps());
    for (int64_t block = 0; block < p.num_blocks; block += kChunkBlocks) {
      const int64_t num_blocks = p.num_blocks - block < kChunkBlocks ? p.num_blocks - block : kChunkBlocks;
      // One stretch of columns that serves all rows stays decoded; otherwise each chunk of rows decodes it again.
      if (first_row == 0 || p.num_blocks > kChunkBlocks) DecodePanel<Type, kTiles>(p, block, num_blocks, codes, scales);
      for (int64_t row = 0; row < num_rows; row += kPanelTokens) {
        const std::byte* rows[kPanelTokens];
        const int64_t count = num_rows - row < kPanelTokens ? num_rows - row : kPanelTokens;
        for (int64_t t = 0; t < count; ++t) rows[t] = RowAt(p, first_row + row + t) + block * BlockBytes(Type::kKind);
        const Ahead ahead = {next + asked_bytes, asked_bytes < panel_bytes ? ahead_bytes : 0};
        asked_bytes += num_blocks * ahead.bytes;
        float* const group_sums = sums + row * kTiles * kLanes;
        PanelGroup<Type, kTiles>(codes, scales, num_blocks, rows, count, ahead, group_sums);
        if (block + num_blocks < p.num_blocks) continue;
        // Stored now and not all at the end: a few stores that miss the caches drain while the next rows are computed.
        for (int64_t i = 0; i < count * kTiles; ++i) {
          float* const lanes = group_sums + i * kLanes;
          _mm512_store_ps(lanes, _mm512_permutexvar_ps(order, _mm512_load_ps(lanes)));
        }
        for (int tile = 0; tile < kTiles; ++tile) {
          StoreTile(p, first_row + row, count, tile, group_sums + tile * kLanes, kTiles * kLanes);
        }
      }
    }
  }
}

// FusedProduct for p.num_rows, from kTokens to kFusedRows.
template <typename Type, int kTokens>
void FusedProductFrom(const PanelProduct& p) {
  if (p.num_rows == kTokens) return FusedProduct<Type, kTokens>(p);
  if constexpr (kTokens < kFusedRows) FusedProductFrom<Type, kTokens + 1>(p);
}

template <typename Type>
void IntegerProduct(const PanelProduct& p) {
  if (p.num_rows <= kFusedRows) return FusedProductFrom<Type, 1>(p);
  if (p.num_outputs > kLanes) return DecodedProduct<Type, 2>(p);
  DecodedProduct<Type, 1>(p);
}

void PanelProductAvx512(const PanelProduct& p) {
  switch (p.dtype) {
    case DType::kMXFP4:
      return IntegerProduct<Mxfp4>(p);
    case DType::kQ4_0:
      return IntegerProduct<Q4_0>(p);
    case DType::kQ8_0:
      return IntegerProduct<Q8_0>(p);
    default:
      if (const ProductFunction product = FormatProductAvx512(p.dtype)) return product(p);
      return FloatPanelProduct(p);
  }
}

constexpr CpuKernels kTable = {"AVX-512 VNNI", QuantizeRow, GluBlocks, Glu,       PanelProductAvx512,
                               FloatProduct,   RmsNormRow,  Attention, LogSumExp, Delta};

}  // namespace

const CpuKernels* Avx512Kernels() { return &kTable; }

}  // namespace ferry

#endif
