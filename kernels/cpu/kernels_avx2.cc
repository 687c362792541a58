// AVX2: the integer products without VNNI, and the table.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds neighbours in 16 bits, which saturates: 2 * 255 * 127 is too much.
// So weights enter differently from AVX-512. MXFP4 as doubled value + 12 (0 to 24) and Q4_0 as its code (0 to 15): four
// such sums fit in 16 bits (4 * 2 * 24 * 127 = 24384) before they widen. Q8_0 as |w|, with the sign moved to the activation:
// 2 * 128 * 127 = 32512 fits once. All of it is exact, so the sums are those of the other tables.
//
// A tile is transposed as in kernels_avx512.cc, two registers for the 16 rows, and decoded once for all rows of activations,
// whose sums wait in scratch.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__AVX2__)  // another processor family, or a compiler without the flags

namespace ferry {
const CpuKernels* Avx2Kernels() { return nullptr; }
}  // namespace ferry

#else

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/vector_kernels.h"

namespace ferry {
namespace {

constexpr int64_t kChunkRows = 256;  // rows whose sums wait in scratch: 16 KiB
constexpr int kPrefetchBytes = 2048;

// One tile of 16 x 32 in the order of the products: [half of the lanes][group]. Lane 4l + i holds row 4i + l.
struct Tile {
  __m256i w[2][kGroups];
  __m256 scales[2];
};

inline void TransposeGroups(__m256i (&y)[4]) {
  const __m256i a = _mm256_unpacklo_epi32(y[0], y[1]), b = _mm256_unpackhi_epi32(y[0], y[1]);
  const __m256i c = _mm256_unpacklo_epi32(y[2], y[3]), d = _mm256_unpackhi_epi32(y[2], y[3]);
  y[0] = _mm256_unpacklo_epi64(a, c), y[1] = _mm256_unpackhi_epi64(a, c);
  y[2] = _mm256_unpacklo_epi64(b, d), y[3] = _mm256_unpackhi_epi64(b, d);
}
inline __m256i LoadCodes(const std::byte* codes, int i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * i));
}
inline __m128i TransposedBytes() { return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

// Splits 4-bit codes. Register i holds rows 2i, 2i + 1: registers 0 2 4 6 give lanes of rows 0 4 8 12 and 1 5 9 13, the
// first half; registers 1 3 5 7 the second.
inline void SplitNibbles(const std::byte* codes, Tile& tile) {
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int half = 0; half < 2; ++half) {
    __m256i y[4];
    for (int i = 0; i < 4; ++i) y[i] = LoadCodes(codes, 2 * i + half);
    TransposeGroups(y);
    for (int i = 0; i < 4; ++i) {
      tile.w[half][i] = _mm256_and_si256(y[i], nibble);
      tile.w[half][4 + i] = _mm256_and_si256(_mm256_srli_epi16(y[i], 4), nibble);
    }
  }
}
inline void LoadHalfScales(const std::byte* scales, Tile& tile) {
  // Sixteen words by their transposed places: bytes apart, permuted, together again.
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 16));
  const __m128i even = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i odd = _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i low = _mm_unpacklo_epi64(_mm_shuffle_epi8(a, even), _mm_shuffle_epi8(b, even));
  const __m128i high = _mm_unpacklo_epi64(_mm_shuffle_epi8(a, odd), _mm_shuffle_epi8(b, odd));
  const __m128i low_moved = _mm_shuffle_epi8(low, TransposedBytes()), high_moved = _mm_shuffle_epi8(high, TransposedBytes());
  tile.scales[0] = _mm256_cvtph_ps(_mm_unpacklo_epi8(low_moved, high_moved));
  tile.scales[1] = _mm256_cvtph_ps(_mm_unpackhi_epi8(low_moved, high_moved));
}

struct Mxfp4 {
  static constexpr DType kType = DType::kMXFP4;
  static constexpr int kCodeBytes = 16, kScaleBytes = 1;
  static constexpr bool kSigned = false;
  static int32_t Offset(int32_t offset) { return offset / 32 * 3; }  // -128 * sum to -12 * sum

  static void Decode(const std::byte* codes, const std::byte* scales, Tile& tile) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    SplitNibbles(codes, tile);
    for (auto& half : tile.w) {
      for (__m256i& group : half) group = _mm256_shuffle_epi8(values, group);
    }
    // Bounds: see kernels_avx512.cc. 2^(s - 128) has the biased exponent s - 1.
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)), TransposedBytes());
    bytes = _mm_max_epu8(_mm_min_epu8(bytes, _mm_set1_epi8(static_cast<char>(192))), _mm_set1_epi8(64));
    bytes = _mm_sub_epi8(bytes, _mm_set1_epi8(1));
    tile.scales[0] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23));
    tile.scales[1] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), 23));
  }
};

struct Q4_0 {
  static constexpr DType kType = DType::kQ4_0;
  static constexpr int kCodeBytes = 16, kScaleBytes = 2;
  static constexpr bool kSigned = false;
  static int32_t Offset(int32_t offset) { return offset / 16; }  // -128 * sum to -8 * sum

  static void Decode(const std::byte* codes, const std::byte* scales, Tile& tile) {
    SplitNibbles(codes, tile);
    LoadHalfScales(scales, tile);
  }
};

struct Q8_0 {
  static constexpr DType kType = DType::kQ8_0;
  static constexpr int kCodeBytes = 32, kScaleBytes = 2;
  static constexpr bool kSigned = true;
  static int32_t Offset(int32_t) { return 0; }

  static void Decode(const std::byte* codes, const std::byte* scales, Tile& tile) {
    // A register holds one row. Rows r and r + 1 side by side, their first 16 columns and their last, then as 4-bit codes.
    for (int half = 0; half < 2; ++half) {
      __m256i first[4], last[4];
      for (int i = 0; i < 4; ++i) {
        const __m256i a = LoadCodes(codes, 4 * i + 2 * half), b = LoadCodes(codes, 4 * i + 2 * half + 1);
        first[i] = _mm256_permute2x128_si256(a, b, 0x20), last[i] = _mm256_permute2x128_si256(a, b, 0x31);
      }
      TransposeGroups(first);
      TransposeGroups(last);
      for (int i = 0; i < 4; ++i) tile.w[half][i] = first[i], tile.w[half][4 + i] = last[i];
    }
    LoadHalfScales(scales, tile);
  }
};

inline __m256i BroadcastGroup(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return _mm256_set1_epi32(four);
}

// The dot products of one half of a tile's rows with one block of activations, less the offset.
template <typename Type>
inline __m256i Dots(const __m256i (&w)[kGroups], const __m256i (&x)[kGroups]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  if constexpr (Type::kSigned) {
    for (int g = 0; g < kGroups; ++g) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[g]), _mm256_sign_epi8(x[g], w[g]));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
  } else {
    for (int g = 0; g < kGroups; g += 4) {
      __m256i pairs = _mm256_maddubs_epi16(w[g], x[g]);
      for (int i = 1; i < 4; ++i) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[g + i], x[g + i]));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
  }
  return sum;
}

template <typename Type>
void IntegerProduct(const PanelProduct& p) {
  float* const sums = reinterpret_cast<float*>(p.scratch);  // [kChunkRows][16], lanes transposed
  constexpr int kTileBytes = kLanes * Type::kCodeBytes;
  constexpr Activations kKind = ActivationsFor(Type::kType);
  for (int64_t tile_number = 0; tile_number * kLanes < p.num_outputs; ++tile_number) {
    const std::byte* codes = p.codes + tile_number * p.num_blocks * kTileBytes;
    const std::byte* scales = p.scales + tile_number * p.num_blocks * kLanes * Type::kScaleBytes;
    for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
      const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
      for (int64_t i = 0; i < num_rows * kLanes; i += 8) _mm256_storeu_ps(sums + i, _mm256_setzero_ps());
      for (int64_t block = 0; block < p.num_blocks; ++block) {
        const std::byte* stored = codes + block * kTileBytes;
        for (int i = 0; i < kTileBytes; i += 64) _mm_prefetch(stored + kPrefetchBytes + i, _MM_HINT_T0);
        Tile tile;
        Type::Decode(stored, scales + block * kLanes * Type::kScaleBytes, tile);
        for (int64_t i = 0; i < num_rows; ++i) {
          const int64_t in_row = p.in_rows == nullptr ? first_row + i : p.in_rows[first_row + i];
          const std::byte* in = p.in->blocks + in_row * p.in->row_stride + block * BlockBytes(kKind);
          const __m256i offset = _mm256_set1_epi32(Type::Offset(*OffsetOf(in, kKind)));
          const __m256 row_scale = _mm256_set1_ps(*ScaleOf(in, kKind));
          __m256i sum_of_half[2];
          const auto add_dots = [&](const int8_t* codes_of_block) {
            __m256i x[kGroups];
            for (int g = 0; g < kGroups; ++g) x[g] = BroadcastGroup(codes_of_block + 4 * g);
            for (int half = 0; half < 2; ++half) {
              sum_of_half[half] = _mm256_add_epi32(Dots<Type>(tile.w[half], x), sum_of_half[half]);
            }
          };
          sum_of_half[0] = sum_of_half[1] = offset;
          add_dots(CodesOf(in));
          if constexpr (kKind == Activations::kWide) {
            for (__m256i& high : sum_of_half) high = _mm256_slli_epi32(high, 7);
            add_dots(CodesOf(in) + kBlock);
          }
          for (int half = 0; half < 2; ++half) {
            const __m256 dots = _mm256_cvtepi32_ps(sum_of_half[half]);
            float* sum = sums + i * kLanes + 8 * half;
            _mm256_storeu_ps(sum, _mm256_fmadd_ps(dots, _mm256_mul_ps(tile.scales[half], row_scale), _mm256_loadu_ps(sum)));
          }
        }
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

void PanelProductAvx2(const PanelProduct& p) {
  switch (p.dtype) {
    case DType::kMXFP4:
      return IntegerProduct<Mxfp4>(p);
    case DType::kQ4_0:
      return IntegerProduct<Q4_0>(p);
    case DType::kQ8_0:
      return IntegerProduct<Q8_0>(p);
    default:
      if (const ProductFunction product = FormatProductAvx2(p.dtype)) return product(p);
      return FloatPanelProduct(p);
  }
}

constexpr CpuKernels kTable = {"AVX2",       QuantizeRow, GluBlocks, Glu,       PanelProductAvx2,
                               FloatProduct, RmsNormRow,  Attention, LogSumExp, Delta};

}  // namespace

const CpuKernels* Avx2Kernels() { return &kTable; }

}  // namespace ferry

#endif
