// AVX-512 with VNNI: products of every number format that has scales and codes, but for the three of kernels_avx512.cc, which
// says how the lanes lie. A format's readers (readers_of_formats.h) give a tile as eight registers of unsigned bytes and its
// scales.
//
// One row of activations: a tile is read and used at once. More: the readers fill a panel of 32 rows in the second-level cache,
// and one loop for all formats of a form multiplies it. Both add block after block with the same roundings: the same bits
// (panel_blocks_avx512.h says why).

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__AVX512VNNI__)  // another processor family, or a compiler without the flags

namespace ferry {
ProductFunction FormatProductAvx512(DType) { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/int_simd_avx512.h"
#include "kernels/cpu/panels_avx512.h"
#include "kernels/cpu/product_parts.h"
// Behind them.
#include "kernels/cpu/grids_avx512.h"
// Behind that.
#include "kernels/cpu/readers_of_formats.h"
// Behind that.
#include "kernels/cpu/panel_blocks_avx512.h"

namespace ferry {
namespace {

constexpr int64_t kPanelCodeBytes = int64_t{kPanelTiles} * kChunkBlocks * kGroups * 64;
constexpr int64_t kPanelScaleBytes = int64_t{kPanelTiles} * kChunkBlocks * 4 * 64;
static_assert(kPanelCodeBytes + kPanelScaleBytes + (kChunkRows + kPanelTokens) * kPanelRows * 4 <= kPanelScratchBytes);

// The offset of a part of a block, times -zero / 128; 0 without a zero.
template <typename Kernel>
inline __m512i StartOf(const int32_t* offset) {
  if constexpr (Kernel::Codes::kSigned) return _mm512_set1_epi32(*offset);
  if constexpr (Kernel::Codes::kZero > 0) return _mm512_set1_epi32(*offset >> OffsetShift(Kernel::Codes::kZero));
  return _mm512_setzero_si512();
}

// ----------------------------------------------------------------------------------------------------------------- one row

// dots += one tile times the codes x of one block of activations: where scales cover 16 columns, the product of each 16; else two
// sums whose sum is the product.
template <typename Kernel, int kTile>
[[gnu::always_inline]] inline void AddProducts(const std::byte* tile, const typename Kernel::Scales& scales, const int8_t* x,
                                               __m512i (&dots)[2]) {
  I32x16 w[kGroups];
  if constexpr (requires { Kernel::Codes::kOrder; }) {
    Kernel::Codes::ReadPlanes(tile, w);
    AddPlanes<typename Kernel::Codes, Kernel::FormOf::kParts>(w, x, dots);
  } else {
    Kernel::Codes::template Read<kTile>(tile, scales, w);
#pragma GCC unroll 4
    for (int g = 0; g < kGroups / 2; ++g) {
      dots[0] = _mm512_dpbusd_epi32(dots[0], w[g].v, BroadcastGroup(x + 4 * g));
      dots[1] = _mm512_dpbusd_epi32(dots[1], w[4 + g].v, BroadcastGroup(x + 16 + 4 * g));
    }
  }
}

// acc + a block's dot products, scaled as readers_of_formats.h says.
template <typename Kernel, int kTile>
[[gnu::always_inline]] inline __m512 AddScaled(__m512 acc, const typename Kernel::Scales& scales, const std::byte* tile,
                                               const std::byte* block, const __m512i (&dots)[2]) {
  using Form = typename Kernel::FormOf;
  F32x16 scale[2], min[2];
  scales.template At<kTile>(tile, scale, min);
  FactorsOfMins<Form> factors;
  factors.Set(block);
  const auto add_min = [&](__m512 sum, int part) {
    return _mm512_fmadd_ps(factors.Of(part), _mm512_mul_ps(min[part].v, _mm512_set1_ps(1.0f / 128)), sum);
  };
  const __m512 in_scale = _mm512_set1_ps(*ScaleOf(block, Form::kKind));
  if constexpr (Form::kParts == 1) {
    const __m512i dot = _mm512_add_epi32(dots[0], dots[1]);
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale[0].v, in_scale), acc);
    return Form::kMins ? add_min(acc, 0) : acc;
  } else {
    if constexpr (Form::kFolds) {
      scale[0] = ToFloats(scales.template Number<kTile, 0>()), scale[1] = ToFloats(scales.template Number<kTile, 1>());
    }
    __m512 joined = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0]), scale[0].v);
    joined = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[1]), scale[1].v, joined);
    if constexpr (Form::kFolds) joined = _mm512_mul_ps(joined, scales.d.v);
    if constexpr (Form::kMins) joined = add_min(add_min(joined, 0), 1);
    return _mm512_fmadd_ps(joined, in_scale, acc);
  }
}

// One tile of rows, all columns, times one row of activations; sums [16] in order of output.
template <typename Kernel>
inline void FusedTile(const std::byte* codes, const std::byte* entries, const std::byte* headers, const std::byte* next,
                      const std::byte* next_entries, int64_t num_blocks, const std::byte* in, float* sums) {
  using Form = typename Kernel::FormOf;
  constexpr int kTileBytes = Kernel::kTileBytes, kTiles = Kernel::kTilesPerScale;
  const int64_t code_bytes = num_blocks * kTileBytes, num_entries = num_blocks / kTiles;
  const auto ask_for = [&](int64_t at, int64_t bytes) {
    const std::byte* ahead = at < code_bytes ? codes + at : next + (at - code_bytes);
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
  };
  __m512 acc = _mm512_setzero_ps();
  for (int64_t e = 0; e < num_entries; ++e) {
    const int64_t ahead = e + 1 + 1024 / (Kernel::kEntryBytes + 1);
    const std::byte* next_entry =
        ahead < num_entries ? entries + ahead * Kernel::kEntryBytes : next_entries + (ahead - num_entries) * Kernel::kEntryBytes;
    for (int i = 0; i < Kernel::kEntryBytes; i += 64) _mm_prefetch(next_entry + i, _MM_HINT_T0);
    const typename Kernel::Scales scales(entries + e * Kernel::kEntryBytes, headers);
    Unroll<kTiles>([&]<int t>() {
      const int64_t at = (e * kTiles + t) * kTileBytes;
      ask_for(at + kPrefetchFar, kTileBytes);
      ask_for(at + kPrefetchAgain, kTileBytes);
      ask_for(at + kPrefetchNear, kTileBytes);
      const std::byte* block = in + (e * kTiles + t) * BlockBytes(Form::kKind);
      const int32_t* offsets = OffsetOf(block, Form::kKind);
      __m512i dots[2] = {StartOf<Kernel>(offsets), Form::kParts == 2 ? StartOf<Kernel>(offsets + 1) : _mm512_setzero_si512()};
      AddProducts<Kernel, t>(codes + at, scales, CodesOf(block), dots);
      acc = AddScaled<Kernel, t>(acc, scales, codes + at, block, dots);
    });
  }
  _mm512_storeu_ps(sums, _mm512_permutexvar_ps(RowOfLane(), acc));
}

template <typename Kernel>
[[gnu::flatten]] void FusedProduct(const PanelProduct& p) {
  alignas(64) float sums[kLanes];
  const std::byte* in = RowAt(p, 0);
  const int64_t code_bytes = p.num_blocks * Kernel::kTileBytes;
  const int64_t entry_bytes = p.num_blocks / Kernel::kTilesPerScale * Kernel::kEntryBytes;
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    const std::byte* codes = p.codes + tile * code_bytes;
    const std::byte* entries = p.scales + tile * entry_bytes;
    const bool jumps = p.next != nullptr && (tile + 1) * kLanes >= p.num_outputs;
    FusedTile<Kernel>(codes, entries, p.row_headers + tile * Kernel::kHeaderBytes, jumps ? p.next : codes + code_bytes,
                      jumps ? p.next_scales : entries + entry_bytes, p.num_blocks, in, sums);
    StoreTile(p, 0, 1, tile, sums, kLanes);
  }
}

// --------------------------------------------------------------------------------------------------------------- many rows

// A stretch of columns of a panel of two tiles, read for panel_blocks_avx512.h. A panel of one tile has it twice.
template <typename Kernel>
void ReadPanel(const PanelProduct& p, int64_t first_block, int64_t num_blocks, std::byte* codes, std::byte* scales) {
  using Form = typename Kernel::FormOf;
  constexpr int kTiles = Kernel::kTilesPerScale;
  const int64_t all_entries = p.num_blocks / kTiles, first_entry = first_block / kTiles;
  for (int tile = 0; tile < kPanelTiles; ++tile) {
    const int64_t from = tile * kLanes < p.num_outputs ? tile : 0;
    const std::byte* headers = p.row_headers + from * Kernel::kHeaderBytes;
    for (int64_t e = 0; e < num_blocks / kTiles; ++e) {
      const int64_t entry = from * all_entries + first_entry + e;
      const std::byte* tiles = p.codes + entry * kTiles * Kernel::kTileBytes;
      const typename Kernel::Scales reader(p.scales + entry * Kernel::kEntryBytes, headers);
      Unroll<kTiles>([&]<int t>() {
        const int64_t place = (e * kTiles + t) * kPanelTiles + tile;
        I32x16 w[kGroups];
        Kernel::Codes::template Read<t>(tiles + t * Kernel::kTileBytes, reader, w);
        StoreCodes<Kernel, t>(reader, w, codes + place * kGroups * 64);
        StoreVectors<Kernel, t>(reader, tiles + t * Kernel::kTileBytes,
                                reinterpret_cast<float*>(scales + place * PanelVectors<Form>() * 64));
      });
    }
  }
}

using PanelReader = void (*)(const PanelProduct& p, int64_t first_block, int64_t num_blocks, std::byte* codes, std::byte* scales);

// `panel_bytes` of codes are asked for ahead, little by little: see kernels_avx512.cc.
template <typename Form>
void PanelProductOf(const PanelProduct& p, PanelReader read, int64_t panel_bytes) {
  std::byte* const codes = p.scratch;
  std::byte* const scales = codes + kPanelCodeBytes;
  float* const sums = reinterpret_cast<float*>(scales + kPanelScaleBytes);
  const __m512i order = RowOfLane();
  const std::byte* const next = p.next != nullptr ? p.next : p.codes + panel_bytes;
  const int64_t multiplied_blocks = (p.num_rows + kPanelTokens - 1) / kPanelTokens * p.num_blocks;
  const int64_t ahead_bytes = (panel_bytes / 64 + multiplied_blocks - 1) / multiplied_blocks * 64;
  int64_t asked_bytes = 0;
  for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
    const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
    for (int64_t i = 0; i < num_rows * kPanelTiles; ++i) _mm512_store_ps(sums + i * kLanes, _mm512_setzero_ps());
    for (int64_t block = 0; block < p.num_blocks; block += kChunkBlocks) {
      const int64_t num_blocks = p.num_blocks - block < kChunkBlocks ? p.num_blocks - block : kChunkBlocks;
      // One stretch of columns that serves all rows stays read; otherwise each chunk of rows reads it again.
      if (first_row == 0 || p.num_blocks > kChunkBlocks) read(p, block, num_blocks, codes, scales);
      for (int64_t row = 0; row < num_rows; row += kPanelTokens) {
        const std::byte* rows[kPanelTokens];
        const int64_t count = num_rows - row < kPanelTokens ? num_rows - row : kPanelTokens;
        for (int64_t t = 0; t < kPanelTokens; ++t) {
          rows[t] = RowAt(p, first_row + row + (t < count ? t : count - 1)) + block * BlockBytes(Form::kKind);
        }
        const Ahead ahead = {next + asked_bytes, asked_bytes < panel_bytes ? ahead_bytes : 0};
        asked_bytes += num_blocks * ahead.bytes;
        float* const group_sums = sums + row * kPanelRows;
        PanelGroup<Form>(codes, scales, num_blocks, rows, count, ahead, group_sums);
        if (block + num_blocks < p.num_blocks) continue;
        for (int64_t i = 0; i < count * kPanelTiles; ++i) {
          float* const lanes = group_sums + i * kLanes;
          _mm512_store_ps(lanes, _mm512_permutexvar_ps(order, _mm512_load_ps(lanes)));
        }
        for (int tile = 0; tile * kLanes < p.num_outputs; ++tile) {
          StoreTile(p, first_row + row, count, tile, group_sums + tile * kLanes, kPanelRows);
        }
      }
    }
  }
}

template <DType kType>
void Product(const PanelProduct& p) {
  using K = Kernel<kType>;
  if (p.num_rows == 1) return FusedProduct<K>(p);
  const int64_t tiles = p.num_outputs > kLanes ? 2 : 1;
  PanelProductOf<typename K::FormOf>(p, ReadPanel<K>, tiles * p.num_blocks * K::kTileBytes);
}

}  // namespace

ProductFunction FormatProductAvx512(DType type) {
  ProductFunction product = nullptr;
  WithFormat(type, [&]<DType kType>() {
    if constexpr (requires { typename ReadersOf<kType>::Codes; }) product = Product<kType>;
  });
  return product;
}

}  // namespace ferry

#endif
