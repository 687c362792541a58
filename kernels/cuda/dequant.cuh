#pragma once

// Blocks of the tiled layout (common/model/tiled_layout.h) turned into pairs of BF16 or F16 in registers, as the A operand of
// a tensor core wants them. A pair is elements (2i, 2i + 1), the lower one in the low half.
//
//   E2M1 codes become numbers by moving bits: sign, exponent and mantissa of a code, placed at the bottom of the
//   target's exponent, read as the value times 2^-126 (BF16) or 2^-14 (F16), subnormals included. One exact product
//   with the block's scale times that power corrects it. BF16 weights are kept 2^-64 too small so that the factor stays
//   in range for every scale up to 2^65; the sums are multiplied by 2^64 at the end (kSumScale). Integers pass through
//   the mantissa of an F32 (2^15 + u, exact), one exact multiply-add with the scale, one rounding.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "common/model/formats/formats.h"
#include "kernels/cuda/device_code.cuh"

namespace ferry::cuda {

template <typename T>
inline constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;

// What the sums of products with weights of `kType` are still to be multiplied by.
template <DType kType, typename Act>
inline constexpr float kSumScale = kType == DType::kMXFP4&& kIsBf16<Act> ? 0x1p64f : 1.0f;

template <typename Act>
__device__ inline uint32_t PackPair(float low, float high) {
  if constexpr (kIsBf16<Act>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename Act>
__device__ inline uint32_t MultiplyPairs(uint32_t a, uint32_t b) {
  if constexpr (kIsBf16<Act>) {
#if __CUDA_ARCH__ >= 800
    const __nv_bfloat162 product =
        __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&product);
#else
    return 0;  // no such kernel is launched there (products.h)
#endif
  } else {
    const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&product);
  }
}

// (value & mask) | rest in one instruction.
__device__ inline uint32_t MaskOr(uint32_t value, uint32_t mask, uint32_t rest) { return (value & mask) | rest; }

// Eight E2M1 codes, two to a byte, with `factor` the block's scale as a pair (Decoder::Scale). Bytes b0..b3 of `word`:
// out[0] = low codes of b0 and b2, out[1] = their high codes, out[2] = low codes of b1 and b3, out[3] = their high
// codes.
template <typename Act>
__device__ inline void EightFp4(uint32_t word, uint32_t factor, uint32_t (&out)[4]) {
  if constexpr (kIsBf16<Act>) {
    constexpr uint32_t kSign = 0x80008000, kRest = 0x01C001C0;
    out[0] = MaskOr(word << 12, kSign, (word << 6) & kRest);
    out[1] = MaskOr(word << 8, kSign, (word << 2) & kRest);
    out[2] = MaskOr(word << 4, kSign, (word >> 2) & kRest);
    out[3] = MaskOr(word, kSign, (word >> 6) & kRest);
  } else {
    constexpr uint32_t kSign = 0x80008000, kRest = 0x0E000E00;
    out[0] = MaskOr(word << 12, kSign, (word << 9) & kRest);
    out[1] = MaskOr(word << 8, kSign, (word << 5) & kRest);
    out[2] = MaskOr(word << 4, kSign, (word << 1) & kRest);
    out[3] = MaskOr(word, kSign, (word >> 3) & kRest);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = MultiplyPairs<Act>(out[i], factor);
}

// Four unsigned bytes u of `word` as (u - kZero) * scale: out[0] = bytes 0 and 1, out[1] = bytes 2 and 3.
template <typename Act, int kZero>
__device__ inline void FourBytes(uint32_t word, float scale, float offset, uint32_t (&out)[2]) {
  constexpr uint32_t kTwoTo15 = 0x47000000;
  const float a = __uint_as_float(__byte_perm(word, kTwoTo15, 0x7404));
  const float b = __uint_as_float(__byte_perm(word, kTwoTo15, 0x7414));
  const float c = __uint_as_float(__byte_perm(word, kTwoTo15, 0x7424));
  const float d = __uint_as_float(__byte_perm(word, kTwoTo15, 0x7434));
  out[0] = PackPair<Act>(fmaf(a, scale, offset), fmaf(b, scale, offset));
  out[1] = PackPair<Act>(fmaf(c, scale, offset), fmaf(d, scale, offset));
}

// A pair of elements of a float type.
template <DType kType, typename Act>
__device__ inline uint32_t ConvertPair(uint32_t bits) {
  if constexpr (kType == DType::kBF16) {
    if constexpr (kIsBf16<Act>)
      return bits;
    else
      return PackPair<Act>(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u));
  } else {
    if constexpr (!kIsBf16<Act>) return bits;
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits));
    return PackPair<Act>(pair.x, pair.y);
  }
}

// One row's block of 32 elements.
template <DType kType, typename Act>
struct Decoder {
  static constexpr bool kFourBit = kType == DType::kMXFP4 || kType == DType::kQ4_0;
  static constexpr bool kHasScale = Format<kType>::kScaleBytes > 0;
  static constexpr int kVectors = Format<kType>::kCodeBytes / 16;

  // A scale as the decoding wants it. MXFP4: a pair of Act; the rest: scale, and -scale * zero, for a multiply-add.
  struct Scale {
    uint32_t pair = 0;
    float scale = 0, offset = 0;
  };
  static constexpr int kZero = kType == DType::kQ4_0 ? 8 : 128;

  // From the bits of the stored scale; none: a scale that makes every element zero.
  __device__ static Scale MakeScale(uint32_t bits) {
    Scale out;
    if constexpr (kType == DType::kMXFP4) {
      if constexpr (kIsBf16<Act>) {
        out.pair = (min(bits, 193u) + 62u) * 0x00800080u;  // 2^(bits - 127 + 126 - 64); beyond: infinity
      } else {
        out.pair = static_cast<uint32_t>(min(max(static_cast<int>(bits) - 98, 0), 31)) * 0x04000400u;  // 2^(bits - 127 + 14)
      }
    } else if constexpr (kHasScale) {
      out.scale = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
      out.offset = -(32768.0f + kZero) * out.scale;
    }
    return out;
  }
  __device__ static uint32_t LoadScaleBits(const std::byte* scale) {
    if constexpr (Format<kType>::kScaleBytes == 1) return *reinterpret_cast<const uint8_t*>(scale);
    if constexpr (Format<kType>::kScaleBytes == 2) return *reinterpret_cast<const uint16_t*>(scale);
    return 0;
  }

  // The whole block from its codes: out[i] = elements (2i, 2i + 1).
  __device__ static void Block(const uint4 (&codes)[kVectors], const Scale& scale, uint32_t (&out)[16]) {
    if constexpr (kFourBit) {
      const uint32_t words[4] = {codes[0].x, codes[0].y, codes[0].z, codes[0].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t quad[4];
        EightCodes(__byte_perm(words[j], 0, 0x3120), scale, quad);  // bytes b0 b2 b1 b3
        out[2 * j] = quad[0], out[2 * j + 1] = quad[2];
        out[8 + 2 * j] = quad[1], out[8 + 2 * j + 1] = quad[3];
      }
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const uint32_t words[4] = {codes[v].x, codes[v].y, codes[v].z, codes[v].w};
        if constexpr (kType == DType::kQ8_0) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            uint32_t pairs[2];
            FourBytes<Act, 128>(words[j] ^ 0x80808080u, scale.scale, scale.offset, pairs);
            out[8 * v + 2 * j] = pairs[0], out[8 * v + 2 * j + 1] = pairs[1];
          }
        } else if constexpr (kType == DType::kF32) {
          out[2 * v] = PackPair<Act>(__uint_as_float(words[0]), __uint_as_float(words[1]));
          out[2 * v + 1] = PackPair<Act>(__uint_as_float(words[2]), __uint_as_float(words[3]));
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) out[4 * v + j] = ConvertPair<kType, Act>(words[j]);
        }
      }
    }
  }

  // The part of the block that lane (g, q) of a warp gives to two m64k16 or m16n8k16 products in natural order, read
  // from shared memory: out[i] = elements (8i + 2q, 8i + 2q + 1). `g` chooses an order of reading that avoids bank
  // conflicts.
  __device__ static void Fragment(const std::byte* codes, int g, int q, const Scale& scale, uint32_t (&out)[4]) {
    if constexpr (kFourBit) {
      const uint32_t first = *reinterpret_cast<const uint16_t*>(codes + 2 * q);
      const uint32_t second = *reinterpret_cast<const uint16_t*>(codes + 8 + 2 * q);
      uint32_t quad[4];
      EightCodes(__byte_perm(first, second, 0x5140), scale, quad);
      out[0] = quad[0], out[1] = quad[2], out[2] = quad[1], out[3] = quad[3];
    } else if constexpr (kType == DType::kQ8_0) {
      const int swap = (g >> 2) & 1;
      const uint32_t order = swap != 0 ? 0x1054 : 0x5410;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::byte* base = codes + 16 * half + 2 * q;
        const uint32_t first = *reinterpret_cast<const uint16_t*>(base + 8 * swap);
        const uint32_t second = *reinterpret_cast<const uint16_t*>(base + 8 * (1 - swap));
        uint32_t pairs[2];
        FourBytes<Act, 128>(__byte_perm(first, second, order) ^ 0x80808080u, scale.scale, scale.offset, pairs);
        out[2 * half] = pairs[0], out[2 * half + 1] = pairs[1];
      }
    } else {
      const int turn = kType == DType::kF32 ? g & 3 : (g >> 1) & 3;
      uint32_t read[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = (i + turn) & 3;
        if constexpr (kType == DType::kF32) {
          const float2 pair = *reinterpret_cast<const float2*>(codes + 32 * chunk + 8 * q);
          read[i] = PackPair<Act>(pair.x, pair.y);
        } else {
          read[i] = ConvertPair<kType, Act>(*reinterpret_cast<const uint32_t*>(codes + 16 * chunk + 4 * q));
        }
      }
      // out[(i + turn) & 3] = read[i]: turn by one, then by two.
      const uint32_t by_one[4] = {(turn & 1) ? read[3] : read[0], (turn & 1) ? read[0] : read[1], (turn & 1) ? read[1] : read[2],
                                  (turn & 1) ? read[2] : read[3]};
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = (turn & 2) ? by_one[(i + 2) & 3] : by_one[i];
    }
  }

 private:
  // Bytes in the order of EightFp4.
  __device__ static void EightCodes(uint32_t word, const Scale& scale, uint32_t (&out)[4]) {
    if constexpr (kType == DType::kMXFP4) {
      EightFp4<Act>(word, scale.pair, out);
    } else {
      const uint32_t low = __byte_perm(word & 0x0F0F0F0Fu, 0, 0x3120), high = __byte_perm((word >> 4) & 0x0F0F0F0Fu, 0, 0x3120);
      uint32_t pairs[2];
      FourBytes<Act, 8>(low, scale.scale, scale.offset, pairs);
      out[0] = pairs[0], out[2] = pairs[1];
      FourBytes<Act, 8>(high, scale.scale, scale.offset, pairs);
      out[1] = pairs[0], out[3] = pairs[1];
    }
  }
};

}  // namespace ferry::cuda
