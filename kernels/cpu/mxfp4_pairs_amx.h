#pragma once

// Products with MXFP4 where 64 columns of activations share a scale (Activations::kPaired). The scales of weights are powers of
// two, so the sums of two neighbouring blocks are whole numbers of one unit:
//
//   d = min(|e1 - e0|, 14), r = |e1 - e0| - d
//   both = 2^d * (sum of the block of the larger exponent) + floor(2^-r * (sum of the other one))
//   sum += float(both) * (2^(larger e - d - 128) * activations' scale)
//
// Beyond a ratio of 2^14 the smaller block gives less than the other one's rounding. Codes of +-12 shifted by up to three are
// still bytes, so a tile product of 64 columns is the sum of a pair in nearly all cases; pairs in which a row differs by more
// take a product for each block. Few rows go by AVX-512 VNNI. All ways give the same whole numbers and add pair after pair: the
// same bits.
//
// Only for kernels_amx.cc, behind integer_formats_avx512.h, amx_tiles.h and amx_sums.h.

namespace ferry {
namespace {

constexpr int kMostShift = 14, kTileShift = 3;
constexpr int64_t kFewPairedRows = 8;  // by VNNI: 8 weights, and a whole and a float sum for each row

// How the two blocks of a pair join, 16 rows of weights in the order of LaneOfRow.
struct PairScales {
  __m512i scale;        // as Mxfp4::Scales
  __m512i up[2], down;  // shifts: of either block to the left, of the smaller one to the right
  __mmask16 second_is_larger;
  bool has_down;
};
inline __m512i ExponentsOf(const std::byte* scales) {
  const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)), transposed);
  bytes = _mm_max_epu8(_mm_min_epu8(bytes, _mm_set1_epi8(static_cast<char>(192))), _mm_set1_epi8(64));
  return _mm512_cvtepu8_epi32(bytes);
}
// `scales`: of the pair's first block; the second one's follow, unless it has none.
inline PairScales JoinScales(const std::byte* scales, bool has_second) {
  const __m512i first = ExponentsOf(scales), second = has_second ? ExponentsOf(scales + kLanes) : first;
  const __m512i apart = _mm512_abs_epi32(_mm512_sub_epi32(second, first));
  const __m512i shift = _mm512_min_epi32(apart, _mm512_set1_epi32(kMostShift));
  PairScales join;
  join.second_is_larger = _mm512_cmpgt_epi32_mask(second, first);
  join.up[0] = _mm512_maskz_mov_epi32(static_cast<__mmask16>(~join.second_is_larger), shift);
  join.up[1] = _mm512_maskz_mov_epi32(join.second_is_larger, shift);
  join.down = _mm512_sub_epi32(apart, shift);
  join.has_down = _mm512_test_epi32_mask(join.down, join.down) != 0;
  const __m512i unit = _mm512_sub_epi32(_mm512_max_epi32(first, second), shift);
  join.scale = _mm512_slli_epi32(_mm512_sub_epi32(unit, _mm512_set1_epi32(128)), 23);
  return join;
}
inline bool FitsTile(const PairScales& join) {
  return _mm512_cmpgt_epi32_mask(_mm512_or_si512(join.up[0], join.up[1]), _mm512_set1_epi32(kTileShift)) == 0;
}
inline __m512i JoinSums(const PairScales& join, __m512i first, __m512i second) {
  first = _mm512_sllv_epi32(first, join.up[0]), second = _mm512_sllv_epi32(second, join.up[1]);
  if (join.has_down) {
    first = _mm512_mask_srav_epi32(first, join.second_is_larger, first, join.down);
    second = _mm512_mask_srav_epi32(second, static_cast<__mmask16>(~join.second_is_larger), second, join.down);
  }
  return _mm512_add_epi32(first, second);
}

// -------------------------------------------------------------------------------------------------------------- few rows

// A pair's scales as JoinScales gives them, by fewer instructions: bytes stay bytes until they are shifts.
struct FewScales {
  __m512i scale, up[2];
  bool has_down;  // and then the sums need JoinScales
};
inline FewScales JoinFewScales(const std::byte* scales) {
  const __m256i transposed = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i both = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)), transposed);
  both = _mm256_max_epu8(_mm256_min_epu8(both, _mm256_set1_epi8(static_cast<char>(192))), _mm256_set1_epi8(64));
  const __m128i first = _mm256_castsi256_si128(both), second = _mm256_extracti128_si256(both, 1);
  const __m128i up0 = _mm_subs_epu8(first, second), up1 = _mm_subs_epu8(second, first);
  FewScales join;
  join.has_down = !_mm_test_all_zeros(_mm_subs_epu8(_mm_or_si128(up0, up1), _mm_set1_epi8(kMostShift)), _mm_set1_epi8(-1));
  join.up[0] = _mm512_cvtepu8_epi32(up0), join.up[1] = _mm512_cvtepu8_epi32(up1);
  const __m512i unit = _mm512_cvtepu8_epi32(_mm_min_epu8(first, second));
  join.scale = _mm512_slli_epi32(_mm512_sub_epi32(unit, _mm512_set1_epi32(128)), 23);
  return join;
}

inline __m512i PairedDots(const __m512i (&w)[kGroups], const std::byte* in) {
  const int8_t* const x = CodesOf(in);
  __m512i first = _mm512_set1_epi32(*OffsetOf(in, Activations::kPaired)), second = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int g = 0; g < kGroups / 2; ++g) {
    first = _mm512_dpbusd_epi32(first, w[g], BroadcastGroup(x + 4 * g));
    second = _mm512_dpbusd_epi32(second, w[4 + g], BroadcastGroup(x + 16 + 4 * g));
  }
  return _mm512_add_epi32(first, second);
}

// sum + whole * (scale * the activations' scale)
inline __m512 AddScaled(__m512i whole, __m512i scale, const std::byte* in, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), Mxfp4::Product(scale, ScaleOf(in, Activations::kPaired)), sum);
}

// FusedTile of kernels_avx512.cc for pairs.
template <int kTokens>
void PairedTile(const std::byte* codes, const std::byte* scales, const std::byte* next, const std::byte* next_scales,
                int64_t num_blocks, const std::byte* const* rows, float* sums) {
  constexpr int kTileBytes = kLanes * Mxfp4::kCodeBytes;
  constexpr int64_t kInBytes = BlockBytes(Activations::kPaired);
  const auto ask_for = [&](int64_t block) {
    const std::byte* ahead = block < num_blocks ? codes + block * kTileBytes : next + (block - num_blocks) * kTileBytes;
    for (int i = 0; i < kTileBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
  };
  __m512 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  __m512i w[kGroups], whole[kTokens];
  for (int64_t block = 0; block + 1 < num_blocks; block += 2) {
    const int64_t far = block + kPrefetchFar / kTileBytes;
    _mm_prefetch(far < num_blocks ? scales + far * kLanes : next_scales + (far - num_blocks) * kLanes, _MM_HINT_T0);
    for (int64_t b = 0; b < 2; ++b) {
      ask_for(far + b), ask_for(block + b + kPrefetchAgain / kTileBytes);
      if constexpr (kTokens == 1) ask_for(block + b + kPrefetchNear / kTileBytes);
    }
    const FewScales join = JoinFewScales(scales + block * kLanes);
    Mxfp4::Decode(codes + block * kTileBytes, w);
    for (int t = 0; t < kTokens; ++t) whole[t] = PairedDots(w, rows[t] + block * kInBytes);
    Mxfp4::Decode(codes + (block + 1) * kTileBytes, w);
    if (join.has_down) [[unlikely]] {
      const PairScales all = JoinScales(scales + block * kLanes, /*has_second=*/true);
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* const in = rows[t] + block * kInBytes;
        acc[t] = AddScaled(JoinSums(all, whole[t], PairedDots(w, in + kInBytes)), all.scale, in, acc[t]);
      }
      continue;
    }
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* const in = rows[t] + block * kInBytes;
      const __m512i other = _mm512_sllv_epi32(PairedDots(w, in + kInBytes), join.up[1]);
      acc[t] = AddScaled(_mm512_add_epi32(_mm512_sllv_epi32(whole[t], join.up[0]), other), join.scale, in, acc[t]);
    }
  }
  if (const int64_t last = num_blocks - 1; last % 2 == 0) {  // without another
    Mxfp4::Decode(codes + last * kTileBytes, w);
    const __m512i scale = Mxfp4::Scales(scales + last * kLanes);
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* const in = rows[t] + last * kInBytes;
      acc[t] = AddScaled(PairedDots(w, in), scale, in, acc[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(sums + t * kLanes, _mm512_permutexvar_ps(LaneOfRow(), acc[t]));
}

template <int kTokens>
void PairedProduct(const PanelProduct& p) {
  if constexpr (kTokens < kFewPairedRows) {
    if (p.num_rows > kTokens) return PairedProduct<kTokens + 1>(p);
  }
  const std::byte* rows[kTokens];
  for (int t = 0; t < kTokens; ++t) rows[t] = RowAt(p, t);
  alignas(64) float sums[kTokens * kLanes];
  const int64_t code_bytes = p.num_blocks * kLanes * Mxfp4::kCodeBytes, scale_bytes = p.num_blocks * kLanes;
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    const std::byte *codes = p.codes + tile * code_bytes, *scales = p.scales + tile * scale_bytes;
    const bool jumps = p.next != nullptr && (tile + 1) * kLanes >= p.num_outputs;
    PairedTile<kTokens>(codes, scales, jumps ? p.next : codes + code_bytes, jumps ? p.next_scales : scales + scale_bytes,
                        p.num_blocks, rows, sums);
    StoreTile(p, 0, kTokens, tile, sums, kLanes);
  }
}

// ------------------------------------------------------------------------------------------------------------- many rows

constexpr int kStretchPairs = 12;  // of a panel at once: 24 KiB, which stay in the first-level cache while groups pass
constexpr int kPairBytes = 2 * kGroups * 64;
constexpr int64_t kPairCodesBytes = int64_t{kPanelTiles} * kStretchPairs * kPairBytes;
constexpr int kPairRing = 4, kPairsLater = 2;  // products in memory, and how many pairs before their use they are made
constexpr int64_t kPairDotsBytes = int64_t{kLanes} * 64;
static_assert(kPairCodesBytes + kSumsBytes + kPairRing * 2 * kPairDotsBytes <= kPanelScratchBytes);

// Products in 0 and 1; activations and weights of 64 columns in 4 and 6, of 32 in 5 and 7.
constexpr TileShape kPairShapes[8] = {{16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 32}, {16, 64}, {kGroups, 64}};

// The pairs of one row tile in a stretch of columns.
struct PairStretch {
  PairScales joins[kStretchPairs];
  bool fits[kStretchPairs];
};

// Signed codes of pairs [first, first + count) of a row tile, shifted where they fit; a second block that is not there is zeros.
inline void DecodePairs(const PanelProduct& p, int tile, int64_t first, int64_t count, std::byte* codes, PairStretch& stretch) {
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int64_t pair = 0; pair < count; ++pair) {
    const int64_t block = tile * p.num_blocks + 2 * (first + pair);
    const bool has_second = 2 * (first + pair) + 1 < p.num_blocks;
    PairScales& join = stretch.joins[pair] = JoinScales(p.scales + block * kLanes, has_second);
    const bool fits = stretch.fits[pair] = FitsTile(join);
    for (int b = 0; b < 2; ++b) {
      __m512i w[kGroups];
      std::byte* const to = codes + pair * kPairBytes + b * kGroups * 64;
      if (b == 1 && !has_second) {
        for (int g = 0; g < kGroups; ++g) _mm512_store_si512(to + 64 * g, _mm512_setzero_si512());
        continue;
      }
      Mxfp4::Decode(p.codes + (block + b) * kLanes * Mxfp4::kCodeBytes, w);
      const __m512i shift = fits ? join.up[b] : _mm512_setzero_si512();
      // Bits that a shift would move into the next byte are cleared: 255 << shift in every byte.
      const __m512i kept = _mm512_sllv_epi32(_mm512_set1_epi32(0xFF), shift);
      const __m512i mask = _mm512_mullo_epi32(_mm512_and_si512(kept, _mm512_set1_epi32(0xFF)), _mm512_set1_epi32(0x01010101));
      for (int g = 0; g < kGroups; ++g) {
        const __m512i code = _mm512_xor_si512(w[g], sign);
        _mm512_store_si512(to + 64 * g, _mm512_and_si512(_mm512_sllv_epi32(code, shift), mask));
      }
    }
  }
}

// The products of a pair to `dots`: of both blocks together, or of each.
inline void MultiplyPair(const std::byte* in, const std::byte* weights, bool fits, std::byte* dots) {
  ZeroTile<0>();
  if (fits) {
    LoadTile<4>(in, 64);
    LoadTile<6>(weights, 64);
    MultiplyTiles<0, 4, 6>();
    StoreTileTo<0>(dots, 64);
    return;
  }
  ZeroTile<1>();
  LoadTile<5>(in, 64);
  LoadTile<7>(weights, 64);
  MultiplyTiles<0, 5, 7>();
  StoreTileTo<0>(dots, 64);
  LoadTile<5>(in + kBlock, 64);
  LoadTile<7>(weights + kGroups * 64, 64);
  MultiplyTiles<1, 5, 7>();
  StoreTileTo<1>(dots + kPairDotsBytes, 64);
}

// sums [16][kPanelRows] += the products of one group of rows and one row tile.
inline void MultiplyPairs(const std::byte* in, const std::byte* weights, const PairStretch& stretch, int64_t count, Ahead ahead,
                          std::byte* dots, float* sums) {
  constexpr int64_t kRingBytes = 2 * kPairDotsBytes;
  __m512 acc[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) acc[i] = _mm512_load_ps(sums + i * kPanelRows);
  const auto multiply = [&](int64_t pair) {
    MultiplyPair(in + pair * kRowPairBytes, weights + pair * kPairBytes, stretch.fits[pair],
                 dots + pair % kPairRing * kRingBytes);
  };
  for (int64_t pair = 0; pair < kPairsLater && pair < count; ++pair) multiply(pair);
  for (int64_t pair = 0; pair < count; ++pair) {
    for (int64_t i = 0; i < ahead.bytes; i += 64) _mm_prefetch(ahead.from + pair * ahead.bytes + i, _MM_HINT_T1);
    if (pair + kPairsLater < count) multiply(pair + kPairsLater);
    const std::byte* const products = dots + pair % kPairRing * kRingBytes;
    const float* const in_scales = reinterpret_cast<const float*>(in + pair * kRowPairBytes + kLanes * 64);
    const PairScales& join = stretch.joins[pair];
    if (!stretch.fits[pair]) {
      for (int i = 0; i < kLanes; ++i) {
        _mm512_store_si512(
            const_cast<std::byte*>(products) + 64 * i,
            JoinSums(join, _mm512_load_si512(products + 64 * i), _mm512_load_si512(products + kPairDotsBytes + 64 * i)));
      }
      asm volatile("" ::: "memory");  // or the compiler loads all products before this branch, into registers that it lacks
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products + 64 * i)),
                               Mxfp4::Product(join.scale, in_scales + i), acc[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) _mm512_store_ps(sums + i * kPanelRows, acc[i]);
}

template <int kTiles>
void PairedTileProduct(const PanelProduct& p) {
  std::byte* const codes = p.scratch;                                     // [tile][pair][16 groups][64]
  float* const sums = reinterpret_cast<float*>(codes + kPairCodesBytes);  // [row][tile][16]
  std::byte* const dots = codes + kPairCodesBytes + kSumsBytes;
  PairStretch stretches[kTiles];
  const __m512i order = LaneOfRow();
  const int64_t num_pairs = (p.num_blocks + 1) / 2, group_bytes = num_pairs * kRowPairBytes;
  const int64_t panel_bytes = kTiles * p.num_blocks * kLanes * Mxfp4::kCodeBytes;
  const std::byte* const next = p.next != nullptr ? p.next : p.codes + panel_bytes;
  const int64_t multiplied = (p.num_rows + kLanes - 1) / kLanes * kTiles * num_pairs;
  const int64_t ahead_bytes = (panel_bytes / 64 + multiplied - 1) / multiplied * 64;
  int64_t asked_bytes = 0;
  ConfigureTiles(kPairShapes);
  for (int64_t first_row = 0; first_row < p.num_rows; first_row += kPartRows) {
    const int64_t num_rows = p.num_rows - first_row < kPartRows ? p.num_rows - first_row : kPartRows;
    ClearSums(num_rows, sums);
    for (int64_t pair = 0; pair < num_pairs; pair += kStretchPairs) {
      const int64_t count = num_pairs - pair < kStretchPairs ? num_pairs - pair : kStretchPairs;
      for (int tile = 0; tile < kTiles; ++tile)
        DecodePairs(p, tile, pair, count, codes + tile * kStretchPairs * kPairBytes, stretches[tile]);
      for (int64_t row = 0; row < num_rows; row += kLanes) {
        const std::byte* const in = p.groups + (first_row + row) / kLanes * group_bytes + pair * kRowPairBytes;
        float* const group_sums = sums + row * kPanelRows;
        for (int tile = 0; tile < kTiles; ++tile) {
          const Ahead ahead = {next + asked_bytes, asked_bytes < panel_bytes ? ahead_bytes : 0};
          asked_bytes += count * ahead.bytes;
          MultiplyPairs(in, codes + tile * kStretchPairs * kPairBytes, stretches[tile], count, ahead, dots,
                        group_sums + tile * kLanes);
        }
        if (pair + count < num_pairs) continue;
        StoreGroup<kTiles>(p, first_row + row, num_rows - row < kLanes ? num_rows - row : kLanes, order, group_sums);
      }
    }
  }
  ReleaseTiles();
}

}  // namespace
}  // namespace ferry
