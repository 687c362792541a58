#pragma once

// The lanes of int_simd_avx512.h in four NEON registers. Loads that take structures apart leave the rows in their own order: lane
// i holds row i. Only for *_neon.cc, *_dotprod.cc and *_i8mm.cc.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd_neon.h"

namespace ferry {
namespace {

struct I32x16 {
  uint32x4_t q[4];

  template <typename Function>
  static I32x16 Each(Function quarter) {
    return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
  }
  // The same for a function of bytes.
  template <typename Function>
  static I32x16 EachBytes(Function quarter) {
    return Each([&](int i) { return vreinterpretq_u32_u8(quarter(i)); });
  }
  uint8x16_t Bytes(int i) const { return vreinterpretq_u8_u32(q[i]); }
  int32x4_t Signed(int i) const { return vreinterpretq_s32_u32(q[i]); }

  static I32x16 Broadcast(int32_t x) {
    return Each([x](int) { return vdupq_n_u32(static_cast<uint32_t>(x)); });
  }
  static I32x16 BroadcastByte(int x) {
    return EachBytes([x](int) { return vdupq_n_u8(static_cast<uint8_t>(x)); });
  }

  friend I32x16 operator&(const I32x16& a, const I32x16& b) {
    return Each([&](int i) { return vandq_u32(a.q[i], b.q[i]); });
  }
  friend I32x16 operator|(const I32x16& a, const I32x16& b) {
    return Each([&](int i) { return vorrq_u32(a.q[i], b.q[i]); });
  }
  friend I32x16 operator^(const I32x16& a, const I32x16& b) {
    return Each([&](int i) { return veorq_u32(a.q[i], b.q[i]); });
  }
  friend I32x16 operator+(const I32x16& a, const I32x16& b) {
    return Each([&](int i) { return vaddq_u32(a.q[i], b.q[i]); });
  }
};

// Products take signed weights as they are.
constexpr int kSignedBias = 0;
constexpr int kLargestUnsigned = 0;

template <int kBits>
inline I32x16 Shift(const I32x16& a) {
  return I32x16::Each([&](int i) {
    if constexpr (kBits > 0) return vshlq_n_u32(a.q[i], kBits);
    if constexpr (kBits < 0) return vshrq_n_u32(a.q[i], -kBits);
    return a.q[i];
  });
}
template <int kBits>
inline I32x16 ShiftRightSigned(const I32x16& a) {
  return I32x16::Each([&](int i) { return vreinterpretq_u32_s32(vshrq_n_s32(a.Signed(i), kBits)); });
}
inline I32x16 AddBytes(const I32x16& a, const I32x16& b) {
  return I32x16::EachBytes([&](int i) { return vaddq_u8(a.Bytes(i), b.Bytes(i)); });
}
inline I32x16 SubBytes(const I32x16& a, const I32x16& b) {
  return I32x16::EachBytes([&](int i) { return vsubq_u8(a.Bytes(i), b.Bytes(i)); });
}
inline I32x16 OrAnd(const I32x16& a, const I32x16& b, const I32x16& c) { return a | (b & c); }
inline I32x16 NonZeroBytes(const I32x16& b) {
  return I32x16::EachBytes([&](int i) { return vtstq_u8(b.Bytes(i), b.Bytes(i)); });
}
inline I32x16 SpreadByte(const I32x16& a) {
  const uint32x4_t lowest = {0x00000000, 0x04040404, 0x08080808, 0x0C0C0C0C};
  return I32x16::EachBytes([&](int i) { return vqtbl1q_u8(a.Bytes(i), vreinterpretq_u8_u32(lowest)); });
}
inline F32x16 ToFloats(const I32x16& a) {
  return F32x16::Each([&](int i) { return vcvtq_f32_s32(a.Signed(i)); });
}

// Adds kNumber to the bytes of four registers, in the lanes whose top bit is set.
template <int kNumber>
inline void AddWhere(const I32x16& top_bit, I32x16* w) {
  const I32x16 number = ShiftRightSigned<31>(top_bit) & I32x16::BroadcastByte(kNumber);
  for (int g = 0; g < 4; ++g) w[g] = AddBytes(w[g], number);
}

// TBL looks up to 64 bytes up at once, and gives 0 where an index is larger.
template <int kEntries>
struct ByteTable {
  static constexpr int kParts = kEntries / 16;
  uint8x16_t parts[kParts];
  explicit ByteTable(const int8_t* table) {
    for (int i = 0; i < kParts; ++i) parts[i] = vld1q_u8(reinterpret_cast<const uint8_t*>(table + 16 * i));
  }
  I32x16 operator[](const I32x16& codes) const {
    const uint8x16_t mask = vdupq_n_u8(kEntries - 1);
    return I32x16::EachBytes([&](int i) {
      const uint8x16_t index = vandq_u8(codes.Bytes(i), mask);
      if constexpr (kParts == 1) return vqtbl1q_u8(parts[0], index);
      if constexpr (kParts == 2) return vqtbl2q_u8({{parts[0], parts[1]}}, index);
      if constexpr (kParts == 4) return vqtbl4q_u8({{parts[0], parts[1], parts[2], parts[3]}}, index);
    });
  }
};

// Entry indices[i] of a table of four-byte words, kStep words apart. NEON gathers nothing: sixteen loads.
template <int kStep>
inline I32x16 Gather(const uint32_t* table, const I32x16& indices) {
  return I32x16::Each([&](int i) {
    uint32x4_t found = vdupq_n_u32(table[kStep * vgetq_lane_u32(indices.q[i], 0)]);
    found = vld1q_lane_u32(table + kStep * vgetq_lane_u32(indices.q[i], 1), found, 1);
    found = vld1q_lane_u32(table + kStep * vgetq_lane_u32(indices.q[i], 2), found, 2);
    return vld1q_lane_u32(table + kStep * vgetq_lane_u32(indices.q[i], 3), found, 3);
  });
}

// ------------------------------------------------------------------------------------------------------------- fields

inline const uint32_t* WordsOf(const std::byte* field) { return reinterpret_cast<const uint32_t*>(field); }

inline void LoadWords(const std::byte* field, I32x16 (&words)[4]) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4x4_t rows = vld4q_u32(WordsOf(field + 64 * i));
    for (int j = 0; j < 4; ++j) words[j].q[i] = rows.val[j];
  }
}
inline void LoadWords(const std::byte* field, I32x16 (&words)[2]) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4x2_t rows = vld2q_u32(WordsOf(field + 32 * i));
    words[0].q[i] = rows.val[0], words[1].q[i] = rows.val[1];
  }
}
inline I32x16 LoadWord(const std::byte* field) {
  return I32x16::Each([&](int i) { return vld1q_u32(WordsOf(field + 16 * i)); });
}
inline I32x16 LoadShort(const std::byte* field) {
  return I32x16::Each([&](int i) { return vmovl_u16(vld1_u16(reinterpret_cast<const uint16_t*>(field) + 4 * i)); });
}
inline F32x16 LoadHalf(const std::byte* field) { return F32x16::LoadF16(field); }
inline I32x16 WidenBytes(uint8x16_t bytes) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  return {{vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)}};
}
inline I32x16 LoadByte(const std::byte* field) { return WidenBytes(vld1q_u8(reinterpret_cast<const uint8_t*>(field))); }
inline F32x16 AsFloats(const I32x16& bits) {
  return F32x16::Each([&](int i) { return vreinterpretq_f32_u32(bits.q[i]); });
}
inline F32x16 HalvesToFloats(const I32x16& halves) {
  return F32x16::Each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(halves.q[i]))); });
}

}  // namespace
}  // namespace ferry
