#pragma once

// Sixteen floats in an array, with the operations of simd_avx512.h in plain C++: every loop over lanes is one that compilers
// turn into the vectors of the processor they build for. Only for *_portable.cc.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/half.h"

namespace ferry {
namespace {

struct F32x16 {
  float v[16];

  static constexpr int kRegisters = 4;

  template <typename Function>
  static F32x16 Each(Function lane) {
    F32x16 result;
    for (int i = 0; i < 16; ++i) result.v[i] = lane(i);
    return result;
  }
  static F32x16 Zero() { return Broadcast(0); }
  static F32x16 Broadcast(float x) {
    return Each([x](int) { return x; });
  }
  static F32x16 Load(const float* p) {
    F32x16 result;
    std::memcpy(result.v, p, sizeof(result.v));
    return result;
  }
  static F32x16 LoadF16(const std::byte* p) {
    uint16_t halves[16];
    std::memcpy(halves, p, sizeof(halves));
    return Each([&](int i) { return HalfToFloat(halves[i]); });
  }
  static F32x16 LoadBf16(const std::byte* p) {
    uint16_t shorts[16];
    std::memcpy(shorts, p, sizeof(shorts));
    return Each([&](int i) { return std::bit_cast<float>(static_cast<uint32_t>(shorts[i]) << 16); });
  }
  static F32x16 LoadI8(const std::byte* p) {
    int8_t bytes[16];
    std::memcpy(bytes, p, sizeof(bytes));
    return Each([&](int i) { return static_cast<float>(bytes[i]); });
  }
  void Store(float* p) const { std::memcpy(p, v, sizeof(v)); }

  friend F32x16 operator+(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend F32x16 operator-(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend F32x16 operator*(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend F32x16 operator/(const F32x16& a, const F32x16& b) {
    return Each([&](int i) { return a.v[i] / b.v[i]; });
  }
};

// Rounded once where every processor of the family has such an instruction (aarch64), so that NEON gives the same bits. Elsewhere
// rounded twice: std::fma is a call there.
inline float Fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline F32x16 Fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return F32x16::Each([&](int i) { return Fma(a.v[i], b.v[i], c.v[i]); });
}
inline F32x16 Max(const F32x16& a, const F32x16& b) {
  return F32x16::Each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 Min(const F32x16& a, const F32x16& b) {
  return F32x16::Each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 Abs(const F32x16& a) {
  return F32x16::Each([&](int i) { return std::bit_cast<float>(std::bit_cast<uint32_t>(a.v[i]) & 0x7FFFFFFF); });
}
inline F32x16 Select(uint32_t mask, const F32x16& a, const F32x16& b) {
  return F32x16::Each([&](int i) { return (mask >> i & 1) != 0 ? a.v[i] : b.v[i]; });
}
inline F32x16 ZeroBelow(const F32x16& value, const F32x16& x, float limit) {
  return F32x16::Each([&](int i) { return x.v[i] < limit ? 0.0f : value.v[i]; });
}
inline F32x16 AddToExponent(const F32x16& v, const F32x16& number) {
  return F32x16::Each([&](int i) {
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v.v[i]) + (std::bit_cast<uint32_t>(number.v[i]) << 23));
  });
}
inline float SumOf(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
inline float MaxOf(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  }
  return a.v[0];
}
inline int32_t StoreRounded(int8_t* p, const F32x16& a) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    // 1.5 * 2^23 pushes the fraction out of the mantissa, rounding to nearest even on the way.
    const int32_t whole = static_cast<int32_t>((a.v[i] + 12582912.0f) - 12582912.0f);
    p[i] = static_cast<int8_t>(whole);
    sum += whole;
  }
  return sum;
}
inline void Transpose(F32x16 (&rows)[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = i + 1; j < 16; ++j) {
      const float upper = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = upper;
    }
  }
}

}  // namespace
}  // namespace ferry
