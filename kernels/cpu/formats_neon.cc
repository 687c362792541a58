// NEON: products of every number format with scales and codes, on processors without dot products of bytes.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__aarch64__)  // another processor family

namespace ferry {
ProductFunction FormatProductNeon(DType) { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/products_neon.h"

namespace ferry {
namespace {

// SMULL and SMLAL make products of 16 bits. The sum of two fits in a lane (2 * 128 * 127 = 32512). SADALP adds neighbours to 32
// bits.
struct Widening {
  static constexpr int kRows = 1;

  struct Row {
    int8x16_t groups[kGroups];  // each four times
    Row() = default;
    explicit Row(const int8_t* codes) {
      for (int g = 0; g < kGroups; ++g) {
        int32_t four;
        std::memcpy(&four, codes + 4 * g, sizeof(four));
        groups[g] = vreinterpretq_s8_s32(vdupq_n_s32(four));
      }
    }
  };

  template <int kFirst, int kCount>
  static int32x4_t Dots(int32x4_t start, const I32x16 (&w)[kGroups], int quarter, const Row& x) {
    int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);  // two sums of each row side by side
    Unroll<kCount / 2>([&]<int i>() {
      constexpr int kGroup = kFirst + 2 * i;
      const int8x16_t a = vreinterpretq_s8_u32(w[kGroup].q[quarter]), b = vreinterpretq_s8_u32(w[kGroup + 1].q[quarter]);
      const int8x16_t xa = x.groups[kGroup], xb = x.groups[kGroup + 1];
      low = vpadalq_s16(low, vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(xa)), vget_low_s8(b), vget_low_s8(xb)));
      high = vpadalq_s16(high, vmlal_high_s8(vmull_high_s8(a, xa), b, xb));
    });
    return vaddq_s32(start, vpaddq_s32(low, high));
  }
  template <typename K>
  static void AddTile(const DecodedTile& tile, const BlockOfRows& rows, int64_t num_rows, float* sums) {
    AddEachRow<K, Widening>(tile, rows, 0, num_rows, sums);
  }
  static void PutInOrder(int64_t, float*) {}
};

}  // namespace

ProductFunction FormatProductNeon(DType type) { return ProductOf<Widening>(type); }

}  // namespace ferry

#endif
