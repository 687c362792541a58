#pragma once

// What a number format is, as data: one specialisation of Format for each type of weights that Ferry multiplies. Sizes, lists,
// messages, tiling, decoding, random matrices and the portable kernels follow from it (formats.h); a fast backend adds only the
// arithmetic of its instruction set.
//
// Everything that a kernel needs at compile time is constexpr, so that .cc and .cu files include the same headers. The functions
// run on the host.
//
// A GGUF row is a header of kRowBytes (none for most types), then blocks of kBlockCols columns in kBlockBytes bytes. The tiled
// layout (tiled_layout.h) regroups the bits of 16 such rows into planes of fields, a field being the same few bytes of each of
// the 16 rows:
//
//   codes    one entry for each 32 columns:         the fields kCodeFields, kCodeBytes a row
//   scales   one entry for each kScaleCols columns: the fields kScaleFields, kScaleBytes a row
//   rows     one entry for each row:                kRowBytes a row
//
// So bit fields of a type are put in one of a few forms, whatever order its GGUF block has, which is what kernels are composed
// of. Column 4g + k of the 32 is byte k of group g:
//
//   nibbles, 16 bytes   word i (of four bytes) holds group i in the low and group i + 4 in the high half of each byte
//   pairs, 8 bytes      word i holds group 4i + j in bits 2j, 2j + 1 of each byte
//   bits, 4 bytes       bit g of each byte belongs to group g

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "common/half.h"
#include "common/model/dtype.h"
#include "common/model/formats/tile_sizes.h"

namespace ferry {

// Bytes of one row in each field of an entry.
template <int... kBytes>
struct Fields {
  static constexpr int kCount = sizeof...(kBytes);
  static constexpr std::array<int, sizeof...(kBytes)> kSizes = {kBytes...};
  static constexpr int kTotal = (kBytes + ... + 0);
};

// How finely activations are kept beside weights of a type (kernels/cpu/cpu_kernels.h). Weights whose scale covers 16 columns
// need the sum of the activations of each 16.
enum class Activations { kNarrow, kHalves, kWide, kPaired };

// The sizes of a format. kStep: columns that share a scale (32 or 16). kMins: a minimum is subtracted after scaling.
// kLargestCode: no code is larger in size, which tells how many products a 16-bit sum can take.
template <int kBlockColumns, typename CodeFieldList, typename ScaleFieldList, int kScaleColumns = kBlockColumns,
          int kRowHeaderBytes = 0>
struct FormatSizes {
  using CodeFields = CodeFieldList;
  using ScaleFields = ScaleFieldList;
  static constexpr int kBlockCols = kBlockColumns;  // of the GGUF block
  static constexpr int kScaleCols = kScaleColumns;
  static constexpr int kCodeBytes = CodeFields::kTotal;
  static constexpr int kScaleBytes = ScaleFields::kTotal;
  static constexpr int kRowBytes = kRowHeaderBytes;
  static constexpr int kTiles = kBlockCols < kTileCols ? 1 : kBlockCols / kTileCols;          // of one GGUF block
  static constexpr int kScaleBlocks = kBlockCols < kScaleCols ? 1 : kBlockCols / kScaleCols;  // likewise
  static constexpr int kTilesPerScale = kScaleCols / kTileCols;
  static constexpr int kUnitCols = kBlockCols < kTileCols ? kTileCols : kBlockCols;    // tiled at once
  static constexpr int kUnitBytes = kTiles * kCodeBytes + kScaleBlocks * kScaleBytes;  // of those columns
  static constexpr int kBlockBytes = kUnitBytes * kBlockCols / kUnitCols;
  static constexpr bool kInteger = true;   // false: a type of floating-point elements, without codes
  static constexpr bool kIsPlain = false;  // true: the block is its scale fields, then its code fields, as they are
  static constexpr int kStep = 32;
  static constexpr bool kMins = false;
  static constexpr int kLargestCode = 128;
};

// One GGUF block (of a type of single elements: 32 of them), its fields side by side.
template <typename F>
struct Parts {
  uint8_t codes[F::kTiles][F::kCodeBytes];
  uint8_t scales[F::kScaleBlocks][F::kScaleBytes > 0 ? F::kScaleBytes : 1];
};

// One row's 32 columns as whole numbers: the value of column i is codes[i] * scale[i / 16] - min[i / 16], each operation rounded
// to f32. Both halves have the same scale where kStep is 32.
struct IntegerBlock {
  int8_t codes[kTileCols];
  float scale[2];
  float min[2] = {0, 0};

  void SetScale(float value) { scale[0] = scale[1] = value; }
  void SetMin(float value) { min[0] = min[1] = value; }
};

// Format<type> has the sizes above and
//   kName                                 as GGUF tools print it
//   Move(mover, parts)                    which bits of the block are which of the parts: both ways, see ToParts and ToBlock
//   Block(codes, scales, row, tile, out)  the meaning of 32 columns, the `tile`-th of those that share `scales`; `row` is the
//                                         header of the row
// and some have
//   Values(codes, scales, row, tile, out) where codes and scales cannot say the value: 32 floats
//   Finite(scales)                        whether the scale of an entry is a number; other types have kHalves, the count of f16
//                                         fields that an entry begins with
//   SetScale(block, scale)                makes a block of random bits one of about that scale and of mean about 0
template <DType kType>
struct Format {
  static constexpr bool kUnsupported = true;
};

template <DType kType>
inline constexpr bool kHasFormat = !requires {
  Format<kType>::kUnsupported;
};

template <typename T>
inline T LoadAs(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
inline void StoreAs(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}
inline float HalfAt(const uint8_t* from) { return HalfToFloat(LoadAs<uint16_t>(from)); }

// ------------------------------------------------------------------------------------- the forms of codes in tiles

// Code i of 32 in each of the forms above, for one row.
inline int NibbleAt(const uint8_t* nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; }
inline int PairAt(const uint8_t* pairs, int i) { return pairs[i / 16 * 4 + i % 4] >> (i / 4 % 4 * 2) & 3; }
inline int BitAt(const uint8_t* bits, int i) { return bits[i % 4] >> (i / 4) & 1; }

// 32 codes of kBits bits, a byte each, to and from their form.
template <int kBits>
inline void PackCodes(const uint8_t (&codes)[kTileCols], uint8_t* form) {
  constexpr int kWords = kBits, kPerWord = 8 / kBits;
  for (int word = 0; word < kWords; ++word) {
    uint32_t packed = 0;
    for (int i = 0; i < kPerWord; ++i) {
      const int group = kBits == 4 ? word + 4 * i : kPerWord * word + i;
      packed |= LoadAs<uint32_t>(codes + 4 * group) << (kBits * i);
    }
    StoreAs(form + 4 * word, packed);
  }
}
template <int kBits>
inline void UnpackCodes(const uint8_t* form, uint8_t (&codes)[kTileCols]) {
  constexpr int kWords = kBits, kPerWord = 8 / kBits;
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x01010101u;
  for (int word = 0; word < kWords; ++word) {
    const uint32_t packed = LoadAs<uint32_t>(form + 4 * word);
    for (int i = 0; i < kPerWord; ++i) {
      const int group = kBits == 4 ? word + 4 * i : kPerWord * word + i;
      StoreAs(codes + 4 * group, (packed >> (kBits * i)) & kMask);
    }
  }
}

// ------------------------------------------------------------------------------------------ between block and parts

// A format's Move calls these with places in its block (bytes from its start) and in the parts; ToParts reads the block, ToBlock
// writes it (all zeros before).
//
//   Bytes(at, part, count)      bytes as they are
//   Codes<bits>(at, shift, part)  32 codes in the bits [shift, shift + bits) of 32 successive bytes
//   CodesAt<bits>(part, bit_of)   code i in the bits from bit_of(i) on, counted from the start of the block; within one byte
//   Bits(bit, count, part, to)    `count` bits from bit `bit` of the block to bit `to` of the part; within one byte of each
class ToParts {
 public:
  explicit ToParts(const uint8_t* block) : block_(block) {}

  void Bytes(int at, uint8_t* part, int count) const { std::memcpy(part, block_ + at, count); }
  template <int kBits>
  void Codes(int at, int shift, uint8_t* part) const {
    uint8_t codes[kTileCols];
    for (int i = 0; i < kTileCols; ++i) codes[i] = static_cast<uint8_t>(block_[at + i] >> shift & ((1 << kBits) - 1));
    PackCodes<kBits>(codes, part);
  }
  template <int kBits, typename BitOf>
  void CodesAt(uint8_t* part, BitOf bit_of) const {
    uint8_t codes[kTileCols];
    for (int i = 0; i < kTileCols; ++i) {
      const int bit = bit_of(i);
      codes[i] = static_cast<uint8_t>(block_[bit / 8] >> bit % 8 & ((1 << kBits) - 1));
    }
    PackCodes<kBits>(codes, part);
  }

  void Bits(int bit, int count, uint8_t* part, int to) const {
    const int bits = block_[bit / 8] >> bit % 8 & ((1 << count) - 1), mask = ((1 << count) - 1) << to % 8;
    part[to / 8] = static_cast<uint8_t>((part[to / 8] & ~mask) | bits << to % 8);
  }

 private:
  const uint8_t* const block_;
};

class ToBlock {
 public:
  explicit ToBlock(uint8_t* block) : block_(block) {}

  void Bytes(int at, const uint8_t* part, int count) const { std::memcpy(block_ + at, part, count); }
  template <int kBits>
  void Codes(int at, int shift, const uint8_t* part) const {
    uint8_t codes[kTileCols];
    UnpackCodes<kBits>(part, codes);
    for (int i = 0; i < kTileCols; ++i) block_[at + i] = static_cast<uint8_t>(block_[at + i] | codes[i] << shift);
  }
  template <int kBits, typename BitOf>
  void CodesAt(const uint8_t* part, BitOf bit_of) const {
    uint8_t codes[kTileCols];
    UnpackCodes<kBits>(part, codes);
    for (int i = 0; i < kTileCols; ++i) {
      const int bit = bit_of(i);
      block_[bit / 8] = static_cast<uint8_t>(block_[bit / 8] | codes[i] << bit % 8);
    }
  }

  void Bits(int bit, int count, const uint8_t* part, int to) const {
    const int bits = part[to / 8] >> to % 8 & ((1 << count) - 1);
    block_[bit / 8] = static_cast<uint8_t>(block_[bit / 8] | bits << bit % 8);
  }

 private:
  uint8_t* const block_;
};

// ------------------------------------------------------------------------------------------------------- values

inline bool IsFiniteHalf(uint16_t half) { return (half & 0x7C00) != 0x7C00; }

// The 32 values that parts of one row encode.
template <typename F>
inline void ValuesOf(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, float* out) {
  if constexpr (requires { &F::Values; }) {
    F::Values(codes, scales, row, tile, out);
  } else {
    IntegerBlock block;
    F::Block(codes, scales, row, tile, block);
    for (int i = 0; i < kTileCols; ++i) {
      const float scaled = static_cast<float>(block.codes[i]) * block.scale[i / 16];
      out[i] = F::kMins ? scaled - block.min[i / 16] : scaled;
    }
  }
}

template <typename F>
inline constexpr Activations kActivationsOf = F::kStep == 16                             ? Activations::kHalves
                                              : F::kCodeBytes == kTileCols&& F::kInteger ? Activations::kWide
                                                                                         : Activations::kNarrow;

}  // namespace ferry
