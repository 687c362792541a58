#pragma once

// Sixteen floats in four NEON registers, with the operations of simd_avx512.h. Every lane gets the bits of simd_portable.h, which
// fuses multiply-adds on this processor family too. Only for *_neon.cc, *_dotprod.cc and *_i8mm.cc.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace ferry {
namespace {

struct F32x16 {
  float32x4_t q[4];

  static constexpr int kRegisters = 8;

  template <typename Function>
  static F32x16 Each(Function quarter) {
    return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
  }
  static F32x16 Zero() { return Broadcast(0); }
  static F32x16 Broadcast(float x) {
    return Each([x](int) { return vdupq_n_f32(x); });
  }
  static F32x16 Load(const float* p) {
    return Each([p](int i) { return vld1q_f32(p + 4 * i); });
  }
  static F32x16 LoadF16(const std::byte* p) {
    const uint16_t* const halves = reinterpret_cast<const uint16_t*>(p);
    return Each([halves](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4 * i))); });
  }
  static F32x16 LoadBf16(const std::byte* p) {
    const uint16_t* const shorts = reinterpret_cast<const uint16_t*>(p);
    return Each([shorts](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(shorts + 4 * i), 16)); });
  }
  static F32x16 LoadI8(const std::byte* p) {
    const int8x16_t bytes = vld1q_s8(reinterpret_cast<const int8_t*>(p));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
  }
  void Store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, q[i]);
  }

  friend F32x16 operator+(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
  }
  friend F32x16 operator-(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
  }
  friend F32x16 operator*(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
  }
  friend F32x16 operator/(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
  }
};

inline F32x16 Fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return F32x16::Each([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
// The second operand where either is NaN, as on x86; FMAX and FMIN would give the NaN.
inline float32x4_t Max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32x16 Max(const F32x16& a, const F32x16& b) {
  return F32x16::Each([&](int i) { return Max(a.q[i], b.q[i]); });
}
inline F32x16 Min(const F32x16& a, const F32x16& b) {
  return F32x16::Each([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
}
inline F32x16 Abs(const F32x16& a) {
  return F32x16::Each([&](int i) { return vabsq_f32(a.q[i]); });
}
inline F32x16 Select(uint32_t mask, const F32x16& a, const F32x16& b) {
  const uint32_t bits[4] = {1, 2, 4, 8};
  return F32x16::Each([&](int i) { return vbslq_f32(vtstq_u32(vdupq_n_u32(mask >> 4 * i), vld1q_u32(bits)), a.q[i], b.q[i]); });
}
inline F32x16 ZeroBelow(const F32x16& value, const F32x16& x, float limit) {
  return F32x16::Each([&](int i) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value.q[i]), vcltq_f32(x.q[i], vdupq_n_f32(limit))));
  });
}
inline F32x16 AddToExponent(const F32x16& v, const F32x16& number) {
  return F32x16::Each([&](int i) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(v.q[i]), vshlq_n_u32(vreinterpretq_u32_f32(number.q[i]), 23)));
  });
}
inline float SumOf(const F32x16& a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float MaxOf(const F32x16& a) {
  const float32x4_t four = Max(Max(a.q[0], a.q[2]), Max(a.q[1], a.q[3]));
  const float32x4_t two = Max(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(Max(two, vextq_f32(two, two, 1)), 0);
}
inline int32_t StoreRounded(int8_t* p, const F32x16& a) {
  int32x4_t whole[4];
  for (int i = 0; i < 4; ++i) whole[i] = vcvtnq_s32_f32(a.q[i]);
  const int16x8_t low = vmovn_high_s32(vmovn_s32(whole[0]), whole[1]), high = vmovn_high_s32(vmovn_s32(whole[2]), whole[3]);
  vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
  return vaddvq_s32(vaddq_s32(vaddq_s32(whole[0], whole[1]), vaddq_s32(whole[2], whole[3])));
}
inline void Transpose(F32x16 (&rows)[16]) {
  // Four by four within each square of four rows and four columns; squares across the diagonal change places.
  F32x16 out[16];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const float32x4_t a = rows[4 * i].q[j], b = rows[4 * i + 1].q[j], c = rows[4 * i + 2].q[j], d = rows[4 * i + 3].q[j];
      const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
      const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d)), cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
      out[4 * j].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even));
      out[4 * j + 1].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd));
      out[4 * j + 2].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even));
      out[4 * j + 3].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd));
    }
  }
  for (int i = 0; i < 16; ++i) rows[i] = out[i];
}

}  // namespace
}  // namespace ferry
