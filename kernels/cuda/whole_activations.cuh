#pragma once

// Activations as whole numbers in shared memory, as products_dot.cuh multiplies them: 32 columns share a step of max|x| / 16256,
// and a number is 128 * high + low, each a signed byte, as on the CPU (kernels/cpu/cpu_kernels.h, wide). The error is at most
// 2^-15 of the largest of the 32, where BF16's is 2^-9 of each.

#include "kernels/cuda/code_forms.cuh"
#include "kernels/cuda/product_device_code.cuh"

namespace ferry::cuda {

// Words of 32 activations: 8 of high bytes, 8 of low bytes, the step, the sum of the values, and two that Last::Words makes of
// the numbers' sums; PlainSums: the whole sum of the last 16 columns, and that of all.
constexpr int kWholeWords = 20;
constexpr int kStepWord = 16, kValueSumWord = 17, kHalfSumWord = 18, kSumWord = 19;

// Words from row to row: 16 bytes more than the row, so that eight rows lie in different banks.
__host__ __device__ inline int WholeRowWords(int blocks) { return blocks * kWholeWords + 4; }

struct BlockSums {
  int last_half, all;  // of the numbers
  int high;            // of their high bytes, if Last::kHigh
};
struct PlainSums {
  static constexpr bool kHigh = false;
  __device__ static uint2 Words(const BlockSums& sums) {
    return {static_cast<uint32_t>(sums.last_half), static_cast<uint32_t>(sums.all)};
  }
};

// Eight activations, in words of four.
struct EightNumbers {
  uint32_t high[2], low[2];
  int sum;
};
__device__ inline EightNumbers NumbersOf(const float (&x)[8], float inverse_step) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the low bits of x + kMagic are the nearest whole number
  EightNumbers out = {};
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    uint32_t moved[4];  // number + 64: its lowest seven bits are low + 64, those above are high
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = __float_as_uint(fmaf(x[4 * w + i], inverse_step, kMagic));
      out.sum += static_cast<int>(bits - __float_as_uint(kMagic));
      moved[i] = bits + 64u;
    }
    out.high[w] =
        __byte_perm(__byte_perm(moved[0] << 1, moved[1] << 1, 0x0051), __byte_perm(moved[2] << 1, moved[3] << 1, 0x0051), 0x5410);
    const uint32_t low =
        __byte_perm(__byte_perm(moved[0], moved[1], 0x0040), __byte_perm(moved[2], moved[3], 0x0040), 0x5410) & 0x7F7F7F7Fu;
    out.low[w] = ((low | 0x80808080u) - 0x40404040u) ^ 0x80808080u;  // less 64, byte by byte
  }
  return out;
}

// The two groups of four columns that a thread of four takes.
template <ColumnOrder kOrder>
__device__ inline int GroupOf(int quarter, int which) {
  if constexpr (kOrder == ColumnOrder::kNibbles || kOrder == ColumnOrder::kNibblesApart) return quarter + 4 * which;
  if constexpr (kOrder == ColumnOrder::kPairs) return quarter / 2 * 4 + quarter % 2 + 2 * which;
  return 2 * quarter + which;
}

// Eight columns of a block, `packed` as they lie in memory, by each of four threads.
template <ColumnOrder kOrder, typename Last>
__device__ inline void QuantizeBlock(const uint4& packed, bool is_bf16, int quarter, uint32_t* out) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
  float x[8];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (is_bf16) {
      x[2 * w] = __uint_as_float(words[w] << 16), x[2 * w + 1] = __uint_as_float(words[w] & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[w]));
      x[2 * w] = pair.x, x[2 * w + 1] = pair.y;
    }
  }
  uint32_t largest = 0;  // of the bits of |x|, so that NaN is larger than everything else
#pragma unroll
  for (int j = 0; j < 8; ++j) largest = max(largest, __float_as_uint(x[j]) & 0x7FFFFFFFu);
  largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
  largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
  const bool finite = largest < 0x7F800000u;
  const float size = fmaxf(__uint_as_float(largest), 0x1p-60f);
  EightNumbers numbers = NumbersOf(x, finite ? __fdividef(16256.0f, size) : 0.0f);
  if constexpr (kOrder != ColumnOrder::kNatural) {  // of both groups: bytes 0, bytes 1, bytes 2, bytes 3
    for (auto* pair : {&numbers.high, &numbers.low}) {
      const uint32_t first = __byte_perm((*pair)[0], (*pair)[1], 0x5140), second = __byte_perm((*pair)[0], (*pair)[1], 0x7362);
      (*pair)[0] = first, (*pair)[1] = second;
    }
  }
  // Where halves matter they are two threads each.
  const int half_sum = numbers.sum + __shfl_xor_sync(0xFFFFFFFFu, numbers.sum, 1);
  const int sum = half_sum + __shfl_xor_sync(0xFFFFFFFFu, half_sum, 2);
  int high = 0;
  if constexpr (Last::kHigh) {
#pragma unroll
    for (int w = 0; w < 2; ++w) high = __dp4a(static_cast<int>(numbers.high[w]), 0x01010101, high);
    high += __shfl_xor_sync(0xFFFFFFFFu, high, 1);
    high += __shfl_xor_sync(0xFFFFFFFFu, high, 2);
  }
  if constexpr (kOrder == ColumnOrder::kNibblesApart) {
    out[quarter] = numbers.high[0], out[quarter + 4] = numbers.high[1];
    out[8 + quarter] = numbers.low[0], out[12 + quarter] = numbers.low[1];
  } else if constexpr (kOrder == ColumnOrder::kTransposed) {
    auto* const halves = reinterpret_cast<uint16_t*>(out + quarter / 2 * 4) + quarter % 2;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      halves[2 * k] = static_cast<uint16_t>(numbers.high[k / 2] >> (16 * (k % 2)));
      halves[2 * k + 16] = static_cast<uint16_t>(numbers.low[k / 2] >> (16 * (k % 2)));
    }
  } else {
    *reinterpret_cast<uint2*>(out + 2 * quarter) = uint2{numbers.high[0], numbers.high[1]};
    *reinterpret_cast<uint2*>(out + 8 + 2 * quarter) = uint2{numbers.low[0], numbers.low[1]};
  }
  const float step = finite ? size * (1.0f / 16256.0f) : __uint_as_float(0x7FC00000u);  // NaN reaches every output of the row
  if (quarter == 0)
    *reinterpret_cast<uint2*>(out + kStepWord) = {__float_as_uint(step), __float_as_uint(static_cast<float>(sum) * step)};
  if (quarter == 2) *reinterpret_cast<uint2*>(out + kHalfSumWord) = Last::Words({half_sum, sum, high});
}

// `count` rows to out [count][WholeRowWords(blocks)], by kThreads threads; row_of(t): the row of params.in, or -1, which gives
// zeros as blocks beyond the columns do. blocks % 8 == 0, so that the lanes of a warp go together.
template <ColumnOrder kOrder, typename Last, int kThreads, typename RowOf>
__device__ inline void QuantizeRows(const ProductParams& params, const RowOf& row_of, int count, int blocks, uint32_t* out) {
  constexpr int kAtOnce = 2, kStep = kThreads / 4;  // loads on their way; blocks at once
  const int quarter = threadIdx.x % 4;
  const bool is_bf16 = params.act_type == DType::kBF16;
  int t = 0, block = threadIdx.x / 4;
  const auto settle = [&] {
    for (; block >= blocks; block -= blocks) ++t;
  };
  settle();
  while (t < count) {
    uint4 packed[kAtOnce];
    int to[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      to[i] = t < count ? t * WholeRowWords(blocks) + block * kWholeWords : -1;
      const int64_t row = t < count && block * 32 < params.k ? row_of(t) : -1;
      packed[i] = uint4{0, 0, 0, 0};
      if (row >= 0) {
        const uint16_t* const from = static_cast<const uint16_t*>(params.in) + row * params.in_stride + block * 32;
        const auto words = [&](int which) { return *reinterpret_cast<const uint2*>(from + 4 * GroupOf<kOrder>(quarter, which)); };
        const uint2 first = words(0), second = words(1);
        packed[i] = uint4{first.x, first.y, second.x, second.y};
      }
      block += kStep;
      settle();
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (to[i] >= 0) QuantizeBlock<kOrder, Last>(packed[i], is_bf16, quarter, out + to[i]);
    }
  }
}

}  // namespace ferry::cuda
