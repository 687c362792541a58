// AVX2: products of every number format that has scales and codes, but for the three of kernels_avx2.cc, which says how the lanes
// lie and what saturates. A tile is read once for up to kChunkRows rows of activations, whose sums wait in scratch. One row alone
// has readers of its own for codes from tables and grids (one_row_avx2.h).

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__AVX2__)  // another processor family, or a compiler without the flags

namespace ferry {
ProductFunction FormatProductAvx2(DType) { return nullptr; }
}  // namespace ferry

#else

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/int_simd_avx2.h"
#include "kernels/cpu/product_parts.h"
// Behind them.
#include "kernels/cpu/one_row_avx2.h"
// Behind that.
#include "kernels/cpu/readers_of_formats.h"

namespace ferry {
namespace {

constexpr int64_t kChunkRows = 256;  // rows whose sums wait in scratch: 16 KiB
constexpr int kPrefetchBytes = 2048;

inline __m256i HalfOf(const I32x16& a, int half) { return half == 0 ? a.lo : a.hi; }
inline __m256 HalfOf(const F32x16& a, int half) { return half == 0 ? a.lo : a.hi; }

// sum + the dot products of kCount groups from kFirst on, of one half of the lanes, with activations x.
template <typename Codes, int kFirst, int kCount>
inline __m256i AddDots(__m256i sum, const Weights& w, int half, const __m256i (&x)[kGroups]) {
  constexpr int kDepth = DepthOf(Codes::kMaxByte);
  const __m256i ones = _mm256_set1_epi16(1);
  Unroll<kCount / kDepth>([&]<int i>() {
    __m256i pairs = _mm256_setzero_si256();
    Unroll<kDepth>([&]<int j>() {
      constexpr int kGroup = kFirst + i * kDepth + j;
      const __m256i codes = HalfOf(w.codes[kGroup], half);
      __m256i products;
      if constexpr (Codes::kSigned) {
        products = _mm256_maddubs_epi16(HalfOf(w.sizes[kGroup], half), _mm256_sign_epi8(x[kGroup], codes));
      } else {
        products = _mm256_maddubs_epi16(codes, x[kGroup]);
      }
      pairs = j == 0 ? products : _mm256_add_epi16(pairs, products);
    });
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
  });
  return sum;
}

// Of a tile. Minima are divided by 128; where a form kFolds, scales are whole numbers of d.
struct Scaling {
  F32x16 scale[2], min[2], d;
};
// sum + a block's dot products, of one half of the lanes, scaled as readers_of_formats.h says.
template <typename Form>
inline __m256 AddScaled(__m256 sum, const __m256i (&dots)[Form::kParts], const Scaling& scaling, int half, const std::byte* in) {
  const float in_scale = *ScaleOf(in, Form::kKind);
  const int32_t* offsets = OffsetOf(in, Form::kKind);
  const __m256 row_scale = _mm256_set1_ps(in_scale), first = HalfOf(scaling.scale[0], half);
  if constexpr (Form::kParts == 1) {
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[0]), _mm256_mul_ps(first, row_scale), sum);
    if constexpr (!Form::kMins) return sum;
    return _mm256_fmadd_ps(_mm256_set1_ps(static_cast<float>(*offsets) * in_scale), HalfOf(scaling.min[0], half), sum);
  } else {
    __m256 joined = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[0]), first);
    joined = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[1]), HalfOf(scaling.scale[1], half), joined);
    if constexpr (Form::kFolds) joined = _mm256_mul_ps(joined, HalfOf(scaling.d, half));
    for (int part = 0; Form::kMins && part < 2; ++part) {
      joined = _mm256_fmadd_ps(_mm256_set1_ps(static_cast<float>(offsets[part])), HalfOf(scaling.min[part], half), joined);
    }
    return _mm256_fmadd_ps(joined, row_scale, sum);
  }
}

// sums [16] += one tile times one block of activations.
template <typename Kernel>
inline void AddTile(const Weights& w, const Scaling& scaling, const std::byte* in, float* sums) {
  using Form = typename Kernel::FormOf;
  using Codes = typename Kernel::Codes;
  constexpr int kPartGroups = kGroups / Form::kParts;
  const int32_t* offsets = OffsetOf(in, Form::kKind);
  __m256i x[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    int32_t four;
    std::memcpy(&four, CodesOf(in) + 4 * g, 4);
    x[g] = _mm256_set1_epi32(four);
  }
  for (int half = 0; half < 2; ++half) {
    __m256i dots[Form::kParts];
    Unroll<Form::kParts>([&]<int part>() {
      int32_t start = 0;
      if constexpr (!Codes::kSigned && Codes::kZero > 0) start = offsets[part] >> OffsetShift(Codes::kZero);
      dots[part] = AddDots<Codes, part * kPartGroups, kPartGroups>(_mm256_set1_epi32(start), w, half, x);
    });
    _mm256_storeu_ps(sums + 8 * half, AddScaled<Form>(_mm256_loadu_ps(sums + 8 * half), dots, scaling, half, in));
  }
}

template <typename Codes>
constexpr bool kFinds = requires {
  Codes::kFinds;
};

// What readers of codes ask of a tile's scales.
struct Shifts {
  I32x16 top_bits[2];
  template <int>
  const I32x16& Shifted(int half) const {
    return top_bits[half];
  }
};

// Whether a tile takes so many instructions that a loop of an entry's eight tiles would leave the processor's cache of decoded
// ones, or that of instructions altogether (docs/tried.md).
template <typename Codes>
constexpr bool IsLarge() {
  if constexpr (requires { Codes::kEntries; }) return Codes::kEntries > 32;
  return kFinds<Codes>;
}

// `found` is what FindEntries found.
template <typename Kernel>
inline void ReadTile(const std::byte* tile, const std::byte* found, const Shifts& shifts, Weights& w) {
  using Codes = typename Kernel::Codes;
  if constexpr (kFinds<Codes>) {
    Codes::Read(tile, found, w);
  } else {
    Codes::template Read<0>(tile, shifts, w.codes);
    if constexpr (Codes::kSigned) {
      for (int g = 0; g < kGroups; ++g) w.sizes[g] = {_mm256_abs_epi8(w.codes[g].lo), _mm256_abs_epi8(w.codes[g].hi)};
    }
  }
}
// Which rows of activations, and which of the tiles along the columns.
struct Place {
  int64_t first_row, num_rows, block;
};
// One row with the readers of one_row_avx2.h.
template <typename Kernel>
inline void AddRowAlone(const std::byte* tile, const Entries& entries, const Shifts& shifts, const Scaling& scaling,
                        const std::byte* in, float* sums) {
  using Form = typename Kernel::FormOf;
  using Reader = OneRow<typename Kernel::Codes>;
  static_assert(!Form::kMins);
  I32x16 dots[Form::kParts];
  Reader::Dots(tile, entries, in, dots);
  for (int half = 0; half < 2; ++half) {
    __m256i parts[Form::kParts];
    for (int part = 0; part < Form::kParts; ++part) {
      parts[part] = HalfOf(dots[part], half);
      const int32_t offset = OffsetOf(in, Form::kKind)[part];  // -128 times the sum of the activations
      if constexpr (Reader::kZero > 0) {
        parts[part] = _mm256_add_epi32(parts[part], _mm256_set1_epi32(offset >> OffsetShift(Reader::kZero)));
      }
      if constexpr (Reader::kShift > 0) {
        const __m256i shifted = _mm256_srai_epi32(HalfOf(shifts.top_bits[part], half), 31);
        parts[part] =
            _mm256_add_epi32(parts[part], _mm256_and_si256(shifted, _mm256_set1_epi32(-Reader::kShift * (offset >> 7))));
      }
    }
    _mm256_storeu_ps(sums + 8 * half, AddScaled<Form>(_mm256_loadu_ps(sums + 8 * half), parts, scaling, half, in));
  }
}
template <typename Kernel>
inline void AddOneRow(const std::byte* tile, const Entries& entries, const Shifts& shifts, const Scaling& scaling,
                      const std::byte* in, float* sums) {
  if constexpr (OneRow<typename Kernel::Codes>::kExists) return AddRowAlone<Kernel>(tile, entries, shifts, scaling, in, sums);
  Weights w;
  ReadTile<Kernel>(tile, entries.found, shifts, w);
  AddTile<Kernel>(w, scaling, in, sums);
}
template <typename Kernel>
[[gnu::noinline, gnu::flatten]] void AddOneRowApart(const std::byte* tile, const Entries& entries, const Shifts& shifts,
                                                    const Scaling& scaling, const std::byte* in, float* sums) {
  AddOneRow<Kernel>(tile, entries, shifts, scaling, in, sums);
}
template <typename Kernel>
[[gnu::noinline, gnu::flatten]] void AddRows(const std::byte* tile, const std::byte* found, const Shifts& shifts,
                                             const Scaling& scaling, const PanelProduct& p, const Place& at, float* sums) {
  Weights w;
  ReadTile<Kernel>(tile, found, shifts, w);
  for (int64_t i = 0; i < at.num_rows; ++i) {
    const std::byte* in = RowAt(p, at.first_row + i) + at.block * BlockBytes(Kernel::FormOf::kKind);
    AddTile<Kernel>(w, scaling, in, sums + i * kLanes);
  }
}
template <typename Kernel, bool kOneRow>
[[gnu::noinline, gnu::flatten]] void FindTile(const std::byte* tile, std::byte* found) {
  using Codes = typename Kernel::Codes;
  if constexpr (kOneRow && OneRow<Codes>::kExists) return CopyPairs<Codes>(tile, found);
  FindEntries<Codes>(tile, found);
}

// sums [num_rows][16] += tile kTile of an entry times rows of activations.
using Found = std::byte[2][kEntryBytesOfTile];
template <typename Kernel, int kTile, bool kOneRow>
inline void AddTileOfEntry(const PanelProduct& p, const Place& at, const std::byte* tile, const typename Kernel::Scales& scales,
                           Found& found, float* sums) {
  using Form = typename Kernel::FormOf;
  using Codes = typename Kernel::Codes;
  Scaling scaling;
  scales.template At<kTile>(tile, scaling.scale, scaling.min);
  if constexpr (Form::kFolds) {
    scaling.scale[0] = ToFloats(scales.template Number<kTile, 0>());
    scaling.scale[1] = ToFloats(scales.template Number<kTile, 1>());
    scaling.d = scales.d;
  }
  if constexpr (Form::kMins) {
    for (int part = 0; part < Form::kParts; ++part) scaling.min[part] = scaling.min[part] * F32x16::Broadcast(1.0f / 128);
  }
  Shifts shifts;
  if constexpr (requires { scales.template Shifted<kTile>(0); }) {
    for (int half = 0; half < 2; ++half) shifts.top_bits[half] = scales.template Shifted<kTile>(half);
  }
  const bool is_last = at.block + 1 == p.num_blocks;
  const Entries entries = {found[kTile % 2], is_last ? tile : tile + Kernel::kTileBytes, found[(kTile + 1) % 2]};
  if constexpr (kFinds<Codes> && !(kOneRow && OneRow<Codes>::kExists)) {
    static_assert(Kernel::kTilesPerScale % 2 == 0);
    if (!is_last) FindTile<Kernel, kOneRow>(entries.next_tile, entries.next);
  }
  if constexpr (kOneRow) {
    const std::byte* in = RowAt(p, 0) + at.block * BlockBytes(Form::kKind);
    if constexpr (IsLarge<Codes>()) return AddOneRowApart<Kernel>(tile, entries, shifts, scaling, in, sums);
    AddOneRow<Kernel>(tile, entries, shifts, scaling, in, sums);
  } else {
    AddRows<Kernel>(tile, entries.found, shifts, scaling, p, at, sums);
  }
}

template <DType kType, bool kOneRow>
[[gnu::flatten]] void ProductOf(const PanelProduct& p) {
  using K = Kernel<kType>;
  float* const sums = reinterpret_cast<float*>(p.scratch);  // [kChunkRows][16], lanes transposed
  alignas(32) Found found;
  const int64_t num_entries = p.num_blocks / K::kTilesPerScale;
  for (int64_t tile_number = 0; tile_number * kLanes < p.num_outputs; ++tile_number) {
    const std::byte* codes = p.codes + tile_number * p.num_blocks * K::kTileBytes;
    const std::byte* entries = p.scales + tile_number * num_entries * K::kEntryBytes;
    const std::byte* headers = p.row_headers + tile_number * K::kHeaderBytes;
    for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
      const int64_t left = p.num_rows - first_row, num_rows = kOneRow ? 1 : left < kChunkRows ? left : kChunkRows;
      for (int64_t i = 0; i < num_rows * kLanes; i += 8) _mm256_storeu_ps(sums + i, _mm256_setzero_ps());
      if constexpr (kFinds<typename K::Codes>) FindTile<K, kOneRow>(codes, found[0]);
      for (int64_t e = 0; e < num_entries; ++e) {
        const typename K::Scales scales(entries + e * K::kEntryBytes, headers);
        Unroll<K::kTilesPerScale>([&]<int t>() {
          const int64_t block = e * K::kTilesPerScale + t;
          const std::byte* stored = codes + block * K::kTileBytes;
          for (int i = 0; i < K::kTileBytes; i += 64) _mm_prefetch(stored + kPrefetchBytes + i, _MM_HINT_T0);
          AddTileOfEntry<K, t, kOneRow>(p, {first_row, num_rows, block}, stored, scales, found, sums);
        });
      }
      for (int64_t i = 0; i < num_rows; ++i) {
        float lanes[kLanes];
        std::memcpy(lanes, sums + i * kLanes, sizeof(lanes));
        for (int row = 0; row < kLanes; ++row) sums[i * kLanes + row] = lanes[4 * (row % 4) + row / 4];
      }
      StoreTile(p, first_row, num_rows, tile_number, sums, kLanes);
    }
  }
}

template <DType kType>
void Product(const PanelProduct& p) {
  if (p.num_rows == 1) return ProductOf<kType, true>(p);
  ProductOf<kType, false>(p);
}

}  // namespace

ProductFunction FormatProductAvx2(DType type) {
  ProductFunction product = nullptr;
  WithFormat(type, [&]<DType kType>() {
    if constexpr (requires { typename ReadersOf<kType>::Codes; }) product = Product<kType>;
  });
  return product;
}

}  // namespace ferry

#endif
