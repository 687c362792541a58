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
// take a product for each block. A tile multiplies as many rows as there are. Few rows go by AVX-512 VNNI. All ways give the same
// whole numbers and add pair after pair: the same bits.
//
// Only for kernels_amx.cc, behind integer_formats_avx512.h, amx_tiles.h and amx_panels.h.

namespace ferry {
namespace {

constexpr int kMostShift = 14, kTileShift = 3;
constexpr int64_t kFewestTileRows = 6;  // from there on tiles take no longer than VNNI, and from ten on less time
constexpr int64_t kFewPairedRows = kFewestTileRows - 1;

// How the two blocks of a pair join, 16 rows of weights in the order of LaneOfRow, as bytes.
struct BlockShifts {
  __m128i up[2];    // by how much each block is shifted to the left; one of them is 0. Beyond kMostShift: PairScales
  __m128i smaller;  // exponents

  bool AnyBeyond(int most) const {
    const __m128i beyond = _mm_subs_epu8(_mm_or_si128(up[0], up[1]), _mm_set1_epi8(static_cast<char>(most)));
    return !_mm_test_all_zeros(beyond, _mm_set1_epi8(-1));
  }
  __m512i Scale() const {  // as Mxfp4::Scales
    return _mm512_slli_epi32(_mm512_sub_epi32(_mm512_cvtepu8_epi32(smaller), _mm512_set1_epi32(128)), 23);
  }
};
// `scales`: of the pair's first block; the second one's follow.
inline BlockShifts ShiftsOf(const std::byte* scales) {
  const __m256i transposed = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i both = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)), transposed);
  both = _mm256_max_epu8(_mm256_min_epu8(both, _mm256_set1_epi8(static_cast<char>(192))), _mm256_set1_epi8(64));
  const __m128i first = _mm256_castsi256_si128(both), second = _mm256_extracti128_si256(both, 1);
  return {{_mm_subs_epu8(first, second), _mm_subs_epu8(second, first)}, _mm_min_epu8(first, second)};
}

// The same for any exponents.
struct PairScales {
  __m512i scale;        // as Mxfp4::Scales
  __m512i up[2], down;  // shifts: of either block to the left, of the smaller one to the right
  __mmask16 second_is_larger;
};
inline PairScales JoinScales(const std::byte* scales) {
  const BlockShifts shifts = ShiftsOf(scales);
  const __m512i up[2] = {_mm512_cvtepu8_epi32(shifts.up[0]), _mm512_cvtepu8_epi32(shifts.up[1])};
  const __m512i apart = _mm512_or_si512(up[0], up[1]), most = _mm512_set1_epi32(kMostShift);
  PairScales join;
  join.second_is_larger = _mm512_test_epi32_mask(up[1], up[1]);
  for (int b = 0; b < 2; ++b) join.up[b] = _mm512_min_epi32(up[b], most);
  join.down = _mm512_sub_epi32(apart, _mm512_min_epi32(apart, most));
  join.scale = _mm512_add_epi32(shifts.Scale(), _mm512_slli_epi32(join.down, 23));
  return join;
}
inline __m512i JoinSums(const PairScales& join, __m512i first, __m512i second) {
  first = _mm512_sllv_epi32(first, join.up[0]), second = _mm512_sllv_epi32(second, join.up[1]);
  first = _mm512_mask_srav_epi32(first, join.second_is_larger, first, join.down);
  second = _mm512_mask_srav_epi32(second, static_cast<__mmask16>(~join.second_is_larger), second, join.down);
  return _mm512_add_epi32(first, second);
}

// -------------------------------------------------------------------------------------------------------------- few rows

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
    const BlockShifts shifts = ShiftsOf(scales + block * kLanes);
    Mxfp4::Decode(codes + block * kTileBytes, w);
    for (int t = 0; t < kTokens; ++t) whole[t] = PairedDots(w, rows[t] + block * kInBytes);
    Mxfp4::Decode(codes + (block + 1) * kTileBytes, w);
    if (shifts.AnyBeyond(kMostShift)) [[unlikely]] {
      const PairScales all = JoinScales(scales + block * kLanes);
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* const in = rows[t] + block * kInBytes;
        acc[t] = AddScaled(JoinSums(all, whole[t], PairedDots(w, in + kInBytes)), all.scale, in, acc[t]);
      }
      continue;
    }
    const __m512i up[2] = {_mm512_cvtepu8_epi32(shifts.up[0]), _mm512_cvtepu8_epi32(shifts.up[1])}, scale = shifts.Scale();
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* const in = rows[t] + block * kInBytes;
      const __m512i other = _mm512_sllv_epi32(PairedDots(w, in + kInBytes), up[1]);
      acc[t] = AddScaled(_mm512_add_epi32(_mm512_sllv_epi32(whole[t], up[0]), other), scale, in, acc[t]);
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

// ------------------------------------------------------------------------------------------------------------------ tiles

constexpr int kPairBytes = 2 * kGroups * 64;
constexpr int kStretchPairs = 12;  // of a panel at once: 24 KiB, which stay in the first-level cache while groups pass
constexpr int kCodesRing = 16;     // pairs of a row tile whose codes are kept
constexpr int kDotsRing = 4;       // products in memory
constexpr int kPairsLater = 2;     // pairs between a product and its use
constexpr int kDecodedLater = 3;   // and between their codes, which must have left for the cache by then, and their use
constexpr int64_t kPairDotsBytes = int64_t{kLanes} * 64;
static_assert(kStretchPairs <= kCodesRing && kDecodedLater > kPairsLater);

// Products of whole groups in 0 and 1, of a part of one in 2; their activations of 64 columns in 4 and 3, of 32 in 5; weights of
// 64 columns in 6, of 32 in 7.
inline void ConfigurePairTiles(int part_rows) {
  const TileShape shapes[8] = {{16, 64}, {16, 64}, {part_rows, 64}, {part_rows, 64}, {16, 64}, {16, 32}, {16, 64}, {kGroups, 64}};
  ConfigureTiles(shapes);
}

// The codes of some pairs of one row tile as tiles read them, and how their products are scaled.
struct PairCodes {
  struct Pair {
    __m512i scale;  // as Mxfp4::Scales, where the blocks fit
    bool fits;      // both blocks in one product
  };
  std::byte* codes;  // [kCodesRing][16 groups of four columns][16 rows][4]
  Pair pairs[kCodesRing];

  std::byte* CodesOf(int64_t pair) { return codes + pair % kCodesRing * kPairBytes; }
  Pair& Of(int64_t pair) { return pairs[pair % kCodesRing]; }
};

// Twice the E2M1 values, shifted to the left by 0 to kTileShift.
alignas(64) constexpr int8_t kShiftedValues[64] = {0, 1, 2,  3,  4,  6,  8,  12, 0, -1, -2,  -3,  -4,  -6,  -8,  -12,  //
                                                   0, 2, 4,  6,  8,  12, 16, 24, 0, -2, -4,  -6,  -8,  -12, -16, -24,  //
                                                   0, 4, 8,  12, 16, 24, 32, 48, 0, -4, -8,  -12, -16, -24, -32, -48,  //
                                                   0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96};

// `up`: by how much each row's codes are shifted.
inline void DecodeShifted(const std::byte* codes, __m128i up, std::byte* to) {
  const __m512i lane_of_byte =
      _mm512_set_epi32(0x0F0F0F0F, 0x0E0E0E0E, 0x0D0D0D0D, 0x0C0C0C0C, 0x0B0B0B0B, 0x0A0A0A0A, 0x09090909, 0x08080808, 0x07070707,
                       0x06060606, 0x05050505, 0x04040404, 0x03030303, 0x02020202, 0x01010101, 0);
  const __m512i shift = _mm512_permutexvar_epi8(lane_of_byte, _mm512_castsi128_si512(_mm_slli_epi16(up, 4)));
  const __m512i values = _mm512_load_si512(kShiftedValues), nibble = _mm512_set1_epi8(0x0F);
  constexpr int kAndOr = 0xEA;  // a & b | c
  __m512i z[4];
  for (int i = 0; i < 4; ++i) z[i] = LoadCodes(codes, i);
  TransposeGroups(z);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_ternarylogic_epi32(z[i], nibble, shift, kAndOr);
    const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(z[i], 4), nibble, shift, kAndOr);
    _mm512_store_si512(to + 64 * i, _mm512_permutexvar_epi8(low, values));
    _mm512_store_si512(to + 64 * (4 + i), _mm512_permutexvar_epi8(high, values));
  }
}

// Of a last block without another, the missing one is zeros.
inline void DecodePair(const PanelProduct& p, int tile, int64_t pair, std::byte* to, PairCodes::Pair& joined) {
  const int64_t block = tile * p.num_blocks + 2 * pair;
  const std::byte *const codes = p.codes + block * kLanes * Mxfp4::kCodeBytes, *const scales = p.scales + block * kLanes;
  if (2 * pair + 1 == p.num_blocks) [[unlikely]] {
    joined.scale = Mxfp4::Scales(scales), joined.fits = true;
    DecodeShifted(codes, _mm_setzero_si128(), to);
    for (int g = kGroups; g < 2 * kGroups; ++g) _mm512_store_si512(to + 64 * g, _mm512_setzero_si512());
    return;
  }
  const BlockShifts shifts = ShiftsOf(scales);
  joined.scale = shifts.Scale();
  joined.fits = !shifts.AnyBeyond(kTileShift);
  const __m128i none = _mm_setzero_si128();
  DecodeShifted(codes, joined.fits ? shifts.up[0] : none, to);
  DecodeShifted(codes + kLanes * Mxfp4::kCodeBytes, joined.fits ? shifts.up[1] : none, to + kGroups * 64);
}

// The products of a pair to `dots`: of both blocks together, or of each. kRows: of the group, 16 or those of its part.
template <int kRows>
[[gnu::always_inline]] inline void MultiplyPair(const std::byte* in, const std::byte* weights, bool fits, std::byte* dots) {
  if (fits) [[likely]] {
    constexpr int kC = kRows == kLanes ? 0 : 2, kA = kRows == kLanes ? 4 : 3;
    ZeroTile<kC>();
    LoadTile<kA>(in, 64);
    LoadTile<6>(weights, 64);
    MultiplyTiles<kC, kA, 6>();
    StoreTileTo<kC>(dots, 64);
    return;
  }
  ZeroTile<0>();
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

// Joins the products of a pair's two blocks, which do not fit one.
inline void JoinDots(const PairScales& join, std::byte* dots) {
  for (int i = 0; i < kLanes; ++i) {
    std::byte* const products = dots + 64 * i;
    _mm512_store_si512(products, JoinSums(join, _mm512_load_si512(products), _mm512_load_si512(products + kPairDotsBytes)));
  }
  asm volatile("" ::: "memory");  // or the compiler loads all products before this branch, into registers that it lacks
}

// A stretch of columns for one group of rows.
struct PairStretch {
  int64_t first, count;  // pairs
  const std::byte* in;   // of the group
  float* sums;           // [16][kPanelRows]
  Ahead ahead;           // asked for with each pair
};

// sums += the products of up to kRows rows of a group and one row tile. The first group of a stretch makes the codes that the
// others take.
template <int kRows, bool kDecodes>
void MultiplyPairs(const PanelProduct& p, int tile, const PairStretch& stretch, std::byte* dots, PairCodes& codes) {
  constexpr int64_t kRingBytes = 2 * kPairDotsBytes;
  __m512 acc[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) acc[i] = _mm512_load_ps(stretch.sums + i * kPanelRows);
  const auto decode = [&](int64_t pair) {
    if constexpr (kDecodes) DecodePair(p, tile, stretch.first + pair, codes.CodesOf(pair), codes.Of(pair));
  };
  const auto multiply = [&](int64_t pair) {
    MultiplyPair<kRows>(stretch.in + pair * kRowPairBytes, codes.CodesOf(pair), codes.Of(pair).fits,
                        dots + pair % kDotsRing * kRingBytes);
  };
  for (int64_t pair = 0; pair < kDecodedLater && pair < stretch.count; ++pair) decode(pair);
  for (int64_t pair = 0; pair < kPairsLater && pair < stretch.count; ++pair) multiply(pair);
  for (int64_t pair = 0; pair < stretch.count; ++pair) {
    for (int64_t i = 0; i < stretch.ahead.bytes; i += 64) {
      _mm_prefetch(stretch.ahead.from + pair * stretch.ahead.bytes + i, _MM_HINT_T1);
    }
    if (pair + kDecodedLater < stretch.count) decode(pair + kDecodedLater);
    if (pair + kPairsLater < stretch.count) multiply(pair + kPairsLater);
    std::byte* const products = dots + pair % kDotsRing * kRingBytes;
    const float* const in_scales = reinterpret_cast<const float*>(stretch.in + pair * kRowPairBytes + kLanes * 64);
    __m512i scale = codes.Of(pair).scale;
    if (!codes.Of(pair).fits) [[unlikely]] {
      const PairScales join = JoinScales(p.scales + (tile * p.num_blocks + 2 * (stretch.first + pair)) * kLanes);
      JoinDots(join, products);
      scale = join.scale;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      acc[i] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products + 64 * i)), Mxfp4::Product(scale, in_scales + i), acc[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) _mm512_store_ps(stretch.sums + i * kPanelRows, acc[i]);
}

template <bool kDecodes>
void MultiplyPairs(const PanelProduct& p, int tile, const PairStretch& stretch, int64_t num_rows, std::byte* dots,
                   PairCodes& codes) {
  if (num_rows > 12) return MultiplyPairs<16, kDecodes>(p, tile, stretch, dots, codes);
  if (num_rows > 8) return MultiplyPairs<12, kDecodes>(p, tile, stretch, dots, codes);
  if (num_rows > 4) return MultiplyPairs<8, kDecodes>(p, tile, stretch, dots, codes);
  MultiplyPairs<4, kDecodes>(p, tile, stretch, dots, codes);
}

template <int kTiles>
void PairedTileProduct(const PanelProduct& p) {
  constexpr int64_t kCodesBytes = int64_t{kCodesRing} * kPairBytes;
  static_assert(kPanelTiles * kCodesBytes + kSumsBytes + kDotsRing * 2 * kPairDotsBytes <= kPanelScratchBytes);
  float* const sums = reinterpret_cast<float*>(p.scratch + kPanelTiles * kCodesBytes);  // [row][tile][16]
  std::byte* const dots = p.scratch + kPanelTiles * kCodesBytes + kSumsBytes;
  PairCodes codes[kTiles];
  for (int tile = 0; tile < kTiles; ++tile) codes[tile].codes = p.scratch + tile * kCodesBytes;
  const __m512i order = LaneOfRow();
  const int64_t num_pairs = (p.num_blocks + 1) / 2, group_bytes = num_pairs * kRowPairBytes;
  const int64_t over = p.num_rows % kLanes;
  // One group needs no codes twice.
  const int64_t stretch_pairs = p.num_rows <= kLanes ? num_pairs : kStretchPairs;
  NextPanel next(p, kTiles * p.num_blocks * kLanes * Mxfp4::kCodeBytes, kTiles * num_pairs);
  ConfigurePairTiles(over == 0 ? kLanes : static_cast<int>((over + 3) / 4 * 4));
  for (int64_t first_row = 0; first_row < p.num_rows; first_row += kPartRows) {
    const int64_t num_rows = p.num_rows - first_row < kPartRows ? p.num_rows - first_row : kPartRows;
    ClearSums(num_rows, sums);
    for (int64_t pair = 0; pair < num_pairs; pair += stretch_pairs) {
      const int64_t count = num_pairs - pair < stretch_pairs ? num_pairs - pair : stretch_pairs;
      for (int64_t row = 0; row < num_rows; row += kLanes) {
        const std::byte* const in = p.groups + (first_row + row) / kLanes * group_bytes + pair * kRowPairBytes;
        float* const group_sums = sums + row * kPanelRows;
        const int64_t group_rows = num_rows - row < kLanes ? num_rows - row : kLanes;
        for (int tile = 0; tile < kTiles; ++tile) {
          const PairStretch stretch = {pair, count, in, group_sums + tile * kLanes, next.Ask(count)};
          if (row == 0) {
            MultiplyPairs<true>(p, tile, stretch, group_rows, dots, codes[tile]);
          } else {
            MultiplyPairs<false>(p, tile, stretch, group_rows, dots, codes[tile]);
          }
        }
        if (pair + count < num_pairs) continue;
        StoreGroup<kTiles>(p, first_row + row, group_rows, order, group_sums);
      }
    }
  }
  ReleaseTiles();
}

}  // namespace
}  // namespace ferry
