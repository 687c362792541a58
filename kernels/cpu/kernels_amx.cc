// AMX: integer products of many rows, and the table, which is that of AVX-512 VNNI beside them.
//
// A block of 32 columns has a scale of its own, so its product leaves the tile as whole numbers and is scaled and added outside,
// by the operations of kernels_avx512.cc and in their order: the same bits. So few rows, other formats and machines without AMX
// need nothing else, and a row has the same bits whichever of the two kernels takes it. MXFP4 alone goes another way, twice as
// fast and with other bits: mxfp4_pairs_amx.h.
//
// A tile has 16 rows of activations, which lie together (PanelProduct::groups), and 16 rows of W, as the panels of AVX-512 hold
// them. While the sums of 16 x 16 outputs stay in registers, a block's product is stored and an earlier one is scaled.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__AVX512VNNI__)  // another processor family, or a compiler without the flags

namespace ferry {
const CpuKernels* AmxKernels() { return nullptr; }
AmxTrial AmxTrialOfBuild() { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/integer_formats_avx512.h"
// Behind it, which switches off warnings.
#include "kernels/cpu/amx_panels.h"
#include "kernels/cpu/amx_tiles.h"
// Behind both.
#include "kernels/cpu/mxfp4_pairs_amx.h"

namespace ferry {
namespace {

constexpr int kStretchBlocks = 24;       // of a panel at once: 24 KiB, which stay in the first-level cache while groups pass
constexpr int kDotsBytes = kLanes * 64;  // of a tile's products
constexpr int64_t kFewRowsOver = 7;      // beyond whole groups that take less time by AVX-512 than a group: 8 to 28 ns a tile
constexpr int kLater = 2, kRing = 4;     // blocks between a product and its use (1 is slower, 3 no faster), and room for them
constexpr int64_t kCodesBytes = int64_t{kStretchBlocks} * kPanelTiles * kGroups * 64;
constexpr int64_t kScalesBytes = int64_t{kStretchBlocks} * kPanelTiles * 64;
static_assert(kCodesBytes + kScalesBytes + kSumsBytes + kRing * 2 * kDotsBytes <= kPanelScratchBytes);

// Products in 0 and 1, activations in 4 and 5, weights in 6.
constexpr TileShape kShapes[8] = {{16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 32}, {16, 32}, {kGroups, 64}, {kGroups, 64}};

// Multiplies one block: `in` of a group, `weights` [group of columns][64] of a row tile. Products go to `dots`, those of low
// codes behind those of high ones.
template <Activations kKind>
[[gnu::always_inline]] inline void MultiplyBlock(const std::byte* in, const std::byte* weights, std::byte* dots) {
  LoadTile<4>(in, 32);
  LoadTile<6>(weights, 64);
  ZeroTile<0>();
  MultiplyTiles<0, 4, 6>();
  StoreTileTo<0>(dots, 64);
  if constexpr (kKind == Activations::kWide) {
    LoadTile<5>(in + kLanes * 32, 32);
    ZeroTile<1>();
    MultiplyTiles<1, 5, 6>();
    StoreTileTo<1>(dots + kDotsBytes, 64);
  }
}

// sums [16][kPanelRows] += the products of one group and one row tile. `weights` and `scales` are of the tile's first block, with
// those of the panel's other tile between blocks; `dots` has room for the products of kRing blocks.
template <typename Type>
void MultiplyGroup(const std::byte* in, const std::byte* weights, const std::byte* scales, int64_t num_blocks, Ahead ahead,
                   std::byte* dots, float* sums) {
  constexpr int64_t kInBytes = RowBlockBytes(Type::kKind), kScalesAt = kInBytes - kLanes * 4;
  constexpr int64_t kWeightBytes = int64_t{kPanelTiles} * kGroups * 64;
  constexpr int64_t kRingBytes = 2 * kDotsBytes;
  __m512 acc[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) acc[i] = _mm512_load_ps(sums + i * kPanelRows);
  for (int64_t block = 0; block < kLater && block < num_blocks; ++block) {
    MultiplyBlock<Type::kKind>(in + block * kInBytes, weights + block * kWeightBytes, dots + block * kRingBytes);
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t i = 0; i < ahead.bytes; i += 64) _mm_prefetch(ahead.from + block * ahead.bytes + i, _MM_HINT_T1);
    if (const int64_t later = block + kLater; later < num_blocks) {
      MultiplyBlock<Type::kKind>(in + later * kInBytes, weights + later * kWeightBytes, dots + later % kRing * kRingBytes);
    }
    const std::byte* const products = dots + block % kRing * kRingBytes;
    const float* const in_scales = reinterpret_cast<const float*>(in + block * kInBytes + kScalesAt);
    const __m512i scale = _mm512_load_si512(scales + block * kPanelTiles * 64);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      __m512i whole = _mm512_load_si512(products + 64 * i);
      if constexpr (Type::kKind == Activations::kWide) {
        whole = _mm512_add_epi32(_mm512_slli_epi32(whole, 7), _mm512_load_si512(products + kDotsBytes + 64 * i));
      }
      acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), Type::Product(scale, in_scales + i), acc[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) _mm512_store_ps(sums + i * kPanelRows, acc[i]);
}

// Codes as signed bytes: those of AVX-512's panels are 128 larger.
inline void MakeSigned(std::byte* codes, int64_t bytes) {
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int64_t i = 0; i < bytes; i += 64) _mm512_store_si512(codes + i, _mm512_xor_si512(_mm512_load_si512(codes + i), sign));
}

template <typename Type, int kTiles>
void TileProduct(const PanelProduct& p) {
  std::byte* const codes = p.scratch;
  std::byte* const scales = codes + kCodesBytes;
  float* const sums = reinterpret_cast<float*>(scales + kScalesBytes);  // [row][tile][16]
  std::byte* const dots = scales + kScalesBytes + kSumsBytes;
  const __m512i order = LaneOfRow();
  const int64_t block_bytes = RowBlockBytes(Type::kKind), group_bytes = p.num_blocks * block_bytes;
  NextPanel next(p, kTiles * p.num_blocks * kLanes * Type::kCodeBytes, kTiles * p.num_blocks);
  ConfigureTiles(kShapes);
  for (int64_t first_row = 0; first_row < p.num_rows; first_row += kPartRows) {
    const int64_t num_rows = p.num_rows - first_row < kPartRows ? p.num_rows - first_row : kPartRows;
    ClearSums(num_rows, sums);
    for (int64_t block = 0; block < p.num_blocks; block += kStretchBlocks) {
      const int64_t num_blocks = p.num_blocks - block < kStretchBlocks ? p.num_blocks - block : kStretchBlocks;
      DecodePanel<Type, kTiles, kPanelTiles>(p, block, num_blocks, codes, scales);
      MakeSigned(codes, num_blocks * kPanelTiles * kGroups * 64);
      for (int64_t row = 0; row < num_rows; row += kLanes) {
        const std::byte* const in = p.groups + (first_row + row) / kLanes * group_bytes + block * block_bytes;
        float* const group_sums = sums + row * kPanelRows;
#pragma GCC unroll 2
        for (int tile = 0; tile < kTiles; ++tile) {
          MultiplyGroup<Type>(in, codes + tile * kGroups * 64, scales + tile * 64, num_blocks, next.Ask(num_blocks), dots,
                              group_sums + tile * kLanes);
        }
        if (block + num_blocks < p.num_blocks) continue;
        StoreGroup<kTiles>(p, first_row + row, num_rows - row < kLanes ? num_rows - row : kLanes, order, group_sums);
      }
    }
  }
  ReleaseTiles();
}

template <typename Type>
void ProductOf(const PanelProduct& p) {
  if (p.num_outputs > kLanes) return TileProduct<Type, 2>(p);
  TileProduct<Type, 1>(p);
}

// Of Q4_0 and Q8_0 AVX-512 reads up to 16 rows' weights as fast as memory gives them; from there to 27 rows tiles are 0.9 to 1.06
// times as fast.
constexpr int64_t kFewestRows = 28;
bool TakesGroups(DType weights, int64_t num_rows) {
  if (weights == DType::kMXFP4) return num_rows >= kFewestTileRows;
  return num_rows >= kFewestRows && (weights == DType::kQ4_0 || weights == DType::kQ8_0);
}

// Rows [first, first + count) of a product.
class PartOfProduct {
 public:
  PartOfProduct(const PanelProduct& p, int64_t first, int64_t count) : in_(*p.in), part_(p) {
    part_.num_rows = count;
    if (p.in_rows != nullptr) {
      part_.in_rows += first;
    } else {
      in_.blocks += first * in_.row_stride, in_.poison += first;
      part_.in = &in_;
    }
    if (p.out_rows != nullptr) {
      part_.out_rows += first;
    } else {
      part_.out += first * p.out_stride;
    }
  }
  PartOfProduct(const PartOfProduct&) = delete;
  const PanelProduct& operator*() const { return part_; }

 private:
  QuantizedRows in_;
  PanelProduct part_;
};

// Products without groups.
void FewRows(const PanelProduct& p) {
  if (p.dtype != DType::kMXFP4) return Avx512Kernels()->panel_product(p);
  for (int64_t first = 0; first < p.num_rows; first += kFewPairedRows) {
    PairedProduct<1>(*PartOfProduct(p, first, p.num_rows - first < kFewPairedRows ? p.num_rows - first : kFewPairedRows));
  }
}

template <typename Type>
void ScaledBlocks(const PanelProduct& p) {
  const int64_t over = p.num_rows % kLanes, few = over <= kFewRowsOver ? over : 0;
  ProductOf<Type>(*PartOfProduct(p, 0, p.num_rows - few));
  if (few > 0) FewRows(*PartOfProduct(p, p.num_rows - few, few));
}

void PanelProductAmx(const PanelProduct& p) {
  if (p.groups == nullptr || !TakesGroups(p.dtype, p.num_rows)) return FewRows(p);
  if (p.dtype == DType::kQ4_0) return ScaledBlocks<Q4_0>(p);
  if (p.dtype == DType::kQ8_0) return ScaledBlocks<Q8_0>(p);
  p.num_outputs > kLanes ? PairedTileProduct<2>(p) : PairedTileProduct<1>(p);
}

bool TryTiles() {
  alignas(64) int8_t twos[16 * 64];
  alignas(64) int32_t sums[kLanes * kLanes] = {};
  for (int8_t& two : twos) two = 2;
  ConfigureTiles(kShapes);
  ZeroTile<0>();
  LoadTile<4>(twos, 32);
  LoadTile<6>(twos, 64);
  MultiplyTiles<0, 4, 6>();
  StoreTileTo<0>(sums, 64);
  ReleaseTiles();
  for (const int32_t sum : sums) {
    if (sum != 4 * kBlock) return false;
  }
  return true;
}

}  // namespace

const CpuKernels* AmxKernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = *Avx512Kernels();
    kernels.name = "AMX with AVX-512 VNNI";  // what decides about bits comes first (KernelsOf, coordinator/experts)
    kernels.pairs_blocks = true;
    kernels.panel_product = PanelProductAmx;
    kernels.takes_groups = TakesGroups;
    return kernels;
  }();
  return &table;
}
AmxTrial AmxTrialOfBuild() { return TryTiles; }

}  // namespace ferry

#endif
