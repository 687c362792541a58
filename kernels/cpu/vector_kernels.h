#pragma once

// Everything but the integer products, written once over F32x16. A source of one instruction set includes its simd_*.h, then
// this, then fills its table; see cpu_kernels.h for what each function does and why all is in an anonymous namespace.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/product_parts.h"

namespace ferry {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ------------------------------------------------------------------------------------------------------------ functions

// Added to a number of less than 2^22, 1.5 * 2^23 rounds it to a whole one, which then lies in the low bits of the sum.
constexpr float kRounder = 12582912.0f;

// e^x within 2e-7 relative for x in [-87, 88]; above, e^88; below, 0; NaN for NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and e^r
// by its Taylor polynomial of degree 7, whose remainder there is 5e-9.
inline F32x16 Exp(F32x16 x) {
  const F32x16 bounded = Max(F32x16::Broadcast(-87.0f), Min(F32x16::Broadcast(88.0f), x));
  const F32x16 magic = F32x16::Broadcast(kRounder);
  const F32x16 shifted = Fma(bounded, F32x16::Broadcast(1.44269504f), magic);
  const F32x16 n = shifted - magic;
  // ln 2 in two parts, the first short enough that n times it is exact.
  F32x16 r = Fma(n, F32x16::Broadcast(-0.693359375f), bounded);
  r = Fma(n, F32x16::Broadcast(2.12194440e-4f), r);
  F32x16 sum = F32x16::Broadcast(1.0f / 5040);
  constexpr float kCoefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float coefficient : kCoefficients) sum = Fma(sum, r, F32x16::Broadcast(coefficient));
  return ZeroBelow(AddToExponent(sum, shifted), x, -87.0f);
}

// NaN where a lane is NaN or infinity, else 0.
inline F32x16 Poison(F32x16 x) { return x - x; }

// One block of 32 to codes; see QuantizedRows for the forms and the bounds of the scale. `largest`: of those that share the
// scale.
inline void QuantizeBlock(Activations kind, F32x16 a, F32x16 b, float largest, std::byte* block) {
  int8_t* const codes = reinterpret_cast<int8_t*>(block);
  float* const scale = reinterpret_cast<float*>(block + CodeBytes(kind));
  int32_t* const offset = reinterpret_cast<int32_t*>(scale + 1);
  const float wanted = largest / 127.0f;
  const float bounded = !(wanted > 0x1p-60f) ? 0x1p-60f : wanted > 0x1p60f ? 0x1p60f : wanted;
  const F32x16 inverse = F32x16::Broadcast(1.0f / bounded);
  const F32x16 low = F32x16::Broadcast(-127.0f), high = F32x16::Broadcast(127.0f);
  const F32x16 steps[2] = {Min(Max(a * inverse, low), high), Min(Max(b * inverse, low), high)};
  const int32_t sums[2] = {StoreRounded(codes, steps[0]), StoreRounded(codes + 16, steps[1])};
  if (kind == Activations::kHalves) {
    *scale = bounded;
    offset[0] = -128 * sums[0], offset[1] = -128 * sums[1];
    return;
  }
  const int32_t sum = sums[0] + sums[1];
  if (kind == Activations::kNarrow || kind == Activations::kPaired) {
    *scale = bounded;
    *offset = -128 * sum;
    return;
  }
  const F32x16 rounder = F32x16::Broadcast(kRounder), parts = F32x16::Broadcast(128);
  int32_t low_sum = 0;
  for (int half = 0; half < 2; ++half) {
    const F32x16 rounded = (steps[half] + rounder) - rounder;
    low_sum += StoreRounded(codes + 32 + 16 * half, (steps[half] - rounded) * parts);
  }
  *scale = bounded / 128;
  *offset = -(128 * sum + low_sum);
}

inline float LargestOf(F32x16 a, F32x16 b) { return MaxOf(Max(Abs(a), Abs(b))); }

void QuantizeRow(Activations kind, const float* x, int64_t cols, std::byte* blocks, float* poison) {
  F32x16 broken = F32x16::Zero();
  float of_pair = 0;
  for (int64_t block = 0; block < cols / kBlock; ++block) {
    const F32x16 a = F32x16::Load(x + block * kBlock), b = F32x16::Load(x + block * kBlock + 16);
    broken = broken + (Poison(a) + Poison(b));
    float largest = of_pair;
    if (kind != Activations::kPaired || block % 2 == 0) {
      largest = LargestOf(a, b);
      const float* const other = x + (block + 1) * kBlock;
      if (kind == Activations::kPaired && (block + 1) * kBlock < cols) {
        const float of_other = LargestOf(F32x16::Load(other), F32x16::Load(other + 16));
        largest = of_other > largest ? of_other : largest;
      }
      of_pair = largest;
    }
    QuantizeBlock(kind, a, b, largest, blocks + block * BlockBytes(kind));
  }
  *poison = SumOf(broken);
}

inline F32x16 GluLanes(F32x16 gate, F32x16 up, const GluNumbers& glu) {
  const F32x16 one = F32x16::Broadcast(1), most = F32x16::Broadcast(glu.limit);
  const F32x16 g = Min(most, gate);  // in this order a NaN stays
  const F32x16 u = Max(F32x16::Broadcast(-glu.limit), Min(most, up));
  const F32x16 sigmoid = one / (one + Exp(g * F32x16::Broadcast(-glu.alpha)));
  return (u + F32x16::Broadcast(glu.up_offset)) * (g * sigmoid);
}

void Glu(const float* gate, const float* up, int64_t count, const GluNumbers& glu, float* h) {
  for (int64_t i = 0; i < count; i += 16) {
    GluLanes(F32x16::Load(gate + i), F32x16::Load(up + i), glu).Store(h + i);
  }
}

template <int kBlocks>
void GluSome(Activations kind, const float* gate, const float* up, int64_t apart, const GluNumbers& glu, std::byte* blocks,
             float* poison) {
  F32x16 h[2 * kBlocks], broken = F32x16::Zero();
  float largest = 0;
  for (int b = 0; b < kBlocks; ++b) {
    for (int i = 0; i < 2; ++i) {
      const int64_t at = b * apart + i * 16;
      h[2 * b + i] = GluLanes(F32x16::Load(gate + at), F32x16::Load(up + at), glu);
      broken = broken + Poison(h[2 * b + i]);
    }
    const float of_block = LargestOf(h[2 * b], h[2 * b + 1]);
    largest = of_block > largest ? of_block : largest;
  }
  if (!(SumOf(broken) == 0)) *poison = kNan;
  for (int b = 0; b < kBlocks; ++b) QuantizeBlock(kind, h[2 * b], h[2 * b + 1], largest, blocks + b * BlockBytes(kind));
}

void GluBlocks(Activations kind, const float* gate, const float* up, int64_t apart, int64_t num_blocks, const GluNumbers& glu,
               std::byte* blocks, float* poison) {
  if (num_blocks == 2) return GluSome<2>(kind, gate, up, apart, glu, blocks, poison);
  GluSome<1>(kind, gate, up, apart, glu, blocks, poison);
}

// The sum of squares in double would cost twice as much and change nothing that a test can see: sixteen sums of at most a
// few hundred terms each.
void RmsNormRow(const float* x, const float* weight, int64_t cols, double epsilon, float* out) {
  F32x16 sums = F32x16::Zero();
  const int64_t whole = cols / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    const F32x16 v = F32x16::Load(x + i);
    sums = Fma(v, v, sums);
  }
  double sum = SumOf(sums);
  for (int64_t i = whole; i < cols; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float factor = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(cols) + epsilon));
  const F32x16 factors = F32x16::Broadcast(factor);
  for (int64_t i = 0; i < whole; i += 16) (F32x16::Load(x + i) * factors * F32x16::Load(weight + i)).Store(out + i);
  for (int64_t i = whole; i < cols; ++i) out[i] = x[i] * factor * weight[i];
}

void Delta(const DeltaTask& t) {
  constexpr int64_t kParts = 4;  // sums side by side, so that an addition need not wait for the one before it
  for (int64_t block = 0; block < t.head_dim / kLanes; ++block) {
    float* const state = t.state + block * t.head_dim * kLanes;
    for (int64_t row = 0; row < t.num_rows; ++row) {
      const float* const q = t.q + row * t.stride;
      const float* const k = t.k + row * t.stride;
      const F32x16 decay = F32x16::Broadcast(t.decay[row * t.gate_stride]);
      F32x16 removed[kParts] = {F32x16::Zero(), F32x16::Zero(), F32x16::Zero(), F32x16::Zero()};
      for (int64_t i = 0; i < t.head_dim; i += kParts) {
        for (int64_t part = 0; part < kParts; ++part) {
          removed[part] = Fma(F32x16::Broadcast(k[i + part]), F32x16::Load(state + (i + part) * kLanes), removed[part]);
        }
      }
      const F32x16 old = ((removed[0] + removed[1]) + (removed[2] + removed[3])) * decay;
      const F32x16 v = F32x16::Load(t.v + row * t.stride + block * kLanes);
      const F32x16 error = F32x16::Broadcast(t.share[row * t.gate_stride]) * (v - old);
      F32x16 sums[kParts] = {F32x16::Zero(), F32x16::Zero(), F32x16::Zero(), F32x16::Zero()};
      for (int64_t i = 0; i < t.head_dim; i += kParts) {
        for (int64_t part = 0; part < kParts; ++part) {
          float* const at = state + (i + part) * kLanes;
          const F32x16 next = Fma(F32x16::Broadcast(k[i + part]), error, F32x16::Load(at) * decay);
          next.Store(at);
          sums[part] = Fma(F32x16::Broadcast(q[i + part]), next, sums[part]);
        }
      }
      ((sums[0] + sums[1]) + (sums[2] + sums[3])).Store(t.out + row * t.out_stride + block * kLanes);
    }
  }
}

float LogSumExp(const float* x, int64_t count) {
  const int64_t whole = count / 16 * 16;
  F32x16 most = F32x16::Broadcast(-kInfinity);
  for (int64_t i = 0; i < whole; i += 16) most = Max(F32x16::Load(x + i), most);
  float largest = MaxOf(most);
  for (int64_t i = whole; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  if (largest == kInfinity) return kInfinity;
  const float base = largest == -kInfinity ? 0 : largest;  // nothing but minus infinity, or NaN

  const F32x16 bases = F32x16::Broadcast(base);
  double sum = 0;
  constexpr int64_t kStretch = 4096;  // lanes add 256 terms each in float, stretches join in double
  for (int64_t first = 0; first < whole; first += kStretch) {
    F32x16 sums = F32x16::Zero();
    const int64_t end = first + kStretch < whole ? first + kStretch : whole;
    for (int64_t i = first; i < end; i += 16) sums = sums + Exp(F32x16::Load(x + i) - bases);
    sum += SumOf(sums);
  }
  for (int64_t i = whole; i < count; ++i) sum += std::exp(static_cast<double>(x[i]) - base);
  return static_cast<float>(base + std::log(sum));
}

// -------------------------------------------------------------------------------------------------- products of floats

// How the 32 columns of one block of a row become two vectors.
template <DType kType>
inline F32x16 LoadWeights(const std::byte* row, int half) {
  if constexpr (kType == DType::kF16) return F32x16::LoadF16(row + half * 32);
  if constexpr (kType == DType::kBF16) return F32x16::LoadBf16(row + half * 32);
  return F32x16::Load(reinterpret_cast<const float*>(row) + half * 16);
}

// kRows rows of weights times kTokens rows of activations. Sixteen sums each, added once along the columns and joined in
// one order, whatever kRows and kTokens are: that is what makes a row independent of its neighbours.
template <DType kType, int kRows, int kTokens>
inline void FloatDots(const std::byte* w, int64_t row_bytes, int64_t block_bytes, int64_t num_blocks, const float* const* x,
                      float (*dots)[kRows]) {
  F32x16 sums[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) sums[r][t] = F32x16::Zero();
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int half = 0; half < 2; ++half) {
      F32x16 weights[kRows];
      for (int r = 0; r < kRows; ++r) weights[r] = LoadWeights<kType>(w + block * block_bytes + r * row_bytes, half);
      for (int t = 0; t < kTokens; ++t) {
        const F32x16 v = F32x16::Load(x[t] + block * kBlock + half * 16);
        for (int r = 0; r < kRows; ++r) sums[r][t] = Fma(weights[r], v, sums[r][t]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) dots[t][r] = SumOf(sums[r][t]);
  }
}

// Register budget: kRows * kTokens sums, kRows weights and one activation. Few tokens leave room for a whole tile's rows,
// which are then read as they lie in memory, once.
constexpr int kDotRows = F32x16::kRegisters >= 32 ? 4 : 2;
constexpr int kDotTokens = F32x16::kRegisters >= 32 ? 4 : 2;
constexpr int kSoloRows = F32x16::kRegisters >= 32 ? 16 : 4;
constexpr int64_t kSoloTokens = 8;  // up to here one straight read for each token beats four interleaved reads for all

// Calls store(token, output, dot) for kRows rows of weights and kTokens rows of activations from first_token.
template <DType kType, int kRows, int kTokens, typename RowOfInput, typename Store>
inline void FloatBlock(const std::byte* w, int64_t row_bytes, int64_t block_bytes, int64_t num_blocks, int64_t first_output,
                       int64_t first_token, RowOfInput row_of_input, Store store) {
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) x[t] = row_of_input(first_token + t);
  float dots[kTokens][kRows];
  FloatDots<kType, kRows, kTokens>(w + first_output * row_bytes, row_bytes, block_bytes, num_blocks, x, dots);
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) store(first_token + t, first_output + r, dots[t][r]);
  }
}

// The same for num_outputs rows of weights and num_rows rows of activations.
template <DType kType, typename RowOfInput, typename Store>
inline void FloatPanel(const std::byte* w, int64_t row_bytes, int64_t block_bytes, int64_t num_outputs, int64_t num_blocks,
                       int64_t num_rows, RowOfInput row_of_input, Store store) {
  int64_t output = 0;
  const auto multiply = [&]<int kRows>() {
    for (; output + kRows <= num_outputs; output += kRows) {
      int64_t token = 0;
      for (; kRows <= kDotRows && token + kDotTokens <= num_rows; token += kDotTokens) {
        FloatBlock<kType, kRows, kRows <= kDotRows ? kDotTokens : 1>(w, row_bytes, block_bytes, num_blocks, output, token,
                                                                     row_of_input, store);
      }
      for (; token < num_rows; ++token) {
        FloatBlock<kType, kRows, 1>(w, row_bytes, block_bytes, num_blocks, output, token, row_of_input, store);
      }
    }
  };
  if (num_rows <= kSoloTokens) multiply.template operator()<kSoloRows>();
  multiply.template operator()<kDotRows>();
  multiply.template operator()<1>();
}

void FloatProduct(const float* w, const float* bias, int64_t num_outputs, int64_t cols, const float* x, int64_t x_stride,
                  int64_t num_rows, float* out, int64_t out_stride) {
  FloatPanel<DType::kF32>(
      reinterpret_cast<const std::byte*>(w), cols * 4, kBlock * 4, num_outputs, cols / kBlock, num_rows,
      [&](int64_t row) { return x + row * x_stride; },
      [&](int64_t row, int64_t output, float dot) {
        out[row * out_stride + output] = bias == nullptr ? dot : dot + bias[output];
      });
}

template <DType kType>
void FloatPanelProductOf(const PanelProduct& p) {
  constexpr int64_t kElementBytes = kType == DType::kF32 ? 4 : 2;
  constexpr int64_t kRowBytes = kBlock * kElementBytes, kTileBytes = kLanes * kRowBytes;
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    const int64_t first = tile * kLanes;
    const int64_t outputs = p.num_outputs - first < kLanes ? p.num_outputs - first : kLanes;
    FloatPanel<kType>(
        p.codes + tile * p.num_blocks * kTileBytes, kRowBytes, kTileBytes, outputs, p.num_blocks, p.num_rows,
        [&](int64_t row) { return p.float_in + (p.in_rows == nullptr ? row : p.in_rows[row]) * p.float_in_stride; },
        [&](int64_t row, int64_t output, float dot) {
          float* to = p.out + (p.out_rows == nullptr ? row : p.out_rows[row]) * p.out_stride + first + output;
          const float sum = p.bias == nullptr ? dot : dot + p.bias[first + output];
          *to = p.accumulate ? *to + sum : sum;
        });
  }
}

void FloatPanelProduct(const PanelProduct& p) {
  if (p.dtype == DType::kF16) return FloatPanelProductOf<DType::kF16>(p);
  if (p.dtype == DType::kBF16) return FloatPanelProductOf<DType::kBF16>(p);
  FloatPanelProductOf<DType::kF32>(p);
}

// ------------------------------------------------------------------------------------------------------------- attention

// One tile of the cache in f32: keys transposed, [head_dim][32 positions], and values [32 positions][value_dim].
struct KvTile {
  float* keys;
  float* values;
};

inline void LoadKvRows(const AttentionTask& t, const std::byte* plane, DType dtype, int64_t first_row, int64_t dim,
                       F32x16 (&rows)[16]) {
  if (dtype == DType::kF16) {
    const std::byte* at = plane + (first_row * t.head_dim + dim) * 2;
    for (int i = 0; i < 16; ++i) rows[i] = F32x16::LoadF16(at + i * t.head_dim * 2);
    return;
  }
  const std::byte* at = plane + first_row * t.head_dim + dim;
  const std::byte* scales = plane + t.num_blocks * t.num_kv_heads * kAttentionTile * t.head_dim;
  const int64_t scales_per_row = t.head_dim / kBlock;
  // Sixteen rows' scales at once: two bytes each, brought together for one conversion.
  std::byte together[32];
  for (int i = 0; i < 16; ++i) {
    const std::byte* scale = scales + ((first_row + i) * scales_per_row + dim / kBlock) * 2;
    together[2 * i] = scale[0], together[2 * i + 1] = scale[1];
  }
  float widened[16];
  F32x16::LoadF16(together).Store(widened);
  for (int i = 0; i < 16; ++i) {
    rows[i] = F32x16::LoadI8(at + i * t.head_dim) * F32x16::Broadcast(widened[i]);
  }
}

// Row of the planes at which a tile begins.
inline int64_t FirstRowOf(const AttentionTask& t, int64_t tile) {
  const int64_t block = t.table[tile % t.table_size];
  return (block * t.num_kv_heads + t.kv_head) * kAttentionTile;
}

// Blocks lie anywhere, so no hardware foresees the next one: its codes are asked for while this one is worked on.
inline void PrefetchTile(const AttentionTask& t, int64_t tile) {
  const auto prefetch = [&](const std::byte* plane, DType dtype) {
    const int64_t row_bytes = t.head_dim * (dtype == DType::kF16 ? 2 : 1);
    const std::byte* const codes = plane + FirstRowOf(t, tile) * row_bytes;
    for (int64_t byte = 0; byte < kAttentionTile * row_bytes; byte += 64) __builtin_prefetch(codes + byte);
  };
  prefetch(t.keys, t.key_type);
  if (t.values != nullptr) prefetch(t.values, t.value_type);
}

inline void LoadTile(const AttentionTask& t, int64_t tile, KvTile to) {
  const int64_t first_row = FirstRowOf(t, tile);
  F32x16 rows[16];
  for (int64_t half = 0; half < kAttentionTile; half += 16) {
    for (int64_t dim = 0; dim < t.head_dim; dim += 16) {
      const auto store_values = [&] {
        for (int i = 0; i < 16; ++i) rows[i].Store(to.values + (half + i) * t.value_dim + dim);
      };
      LoadKvRows(t, t.keys, t.key_type, first_row + half, dim, rows);
      if (t.values == nullptr && dim < t.value_dim) store_values();
      Transpose(rows);
      for (int i = 0; i < 16; ++i) rows[i].Store(to.keys + (dim + i) * kAttentionTile + half);
      if (t.values == nullptr) continue;
      LoadKvRows(t, t.values, t.value_type, first_row + half, dim, rows);
      store_values();
    }
  }
}

// Scores of kHeads query vectors (one after the other, head_dim apart) against the tile's 32 keys.
template <int kHeads>
inline void Scores(const float* q, int64_t head_dim, const float* keys, float* scores) {
  F32x16 low[kHeads], high[kHeads];
  for (int h = 0; h < kHeads; ++h) low[h] = high[h] = F32x16::Zero();
  for (int64_t dim = 0; dim < head_dim; ++dim) {
    const F32x16 key_low = F32x16::Load(keys + dim * kAttentionTile);
    const F32x16 key_high = F32x16::Load(keys + dim * kAttentionTile + 16);
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 component = F32x16::Broadcast(q[h * head_dim + dim]);
      low[h] = Fma(component, key_low, low[h]);
      high[h] = Fma(component, key_high, high[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) low[h].Store(scores + h * kAttentionTile), high[h].Store(scores + h * kAttentionTile + 16);
}

// sums = sums * corrections + weights . values over positions [first, end) of the tile, for kHeads vectors and 16 * kVectors
// dimensions. Positions outside are not touched at all: what lies there may never have been written.
template <int kHeads, int kVectors>
inline void AddValues(const float* weights, const float* values, int64_t head_dim, int64_t first, int64_t end,
                      const float* corrections, float* sums) {
  F32x16 acc[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    const F32x16 correction = F32x16::Broadcast(corrections[h]);
    for (int c = 0; c < kVectors; ++c) acc[h][c] = F32x16::Load(sums + h * head_dim + 16 * c) * correction;
  }
  for (int64_t position = first; position < end; ++position) {
    F32x16 value[kVectors];
    for (int c = 0; c < kVectors; ++c) value[c] = F32x16::Load(values + position * head_dim + 16 * c);
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 weight = F32x16::Broadcast(weights[h * kAttentionTile + position]);
      for (int c = 0; c < kVectors; ++c) acc[h][c] = Fma(weight, value[c], acc[h][c]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int c = 0; c < kVectors; ++c) acc[h][c].Store(sums + h * head_dim + 16 * c);
  }
}

template <int kHeads>
inline void AddValuesOfHeads(const float* weights, const float* values, int64_t head_dim, int64_t first, int64_t end,
                             const float* corrections, float* sums) {
  int64_t dim = 0;
  for (; dim + 64 <= head_dim; dim += 64) {
    AddValues<kHeads, 4>(weights, values + dim, head_dim, first, end, corrections, sums + dim);
  }
  for (; dim < head_dim; dim += 16) {
    AddValues<kHeads, 1>(weights, values + dim, head_dim, first, end, corrections, sums + dim);
  }
}

// Query heads taken together: 2 * kHeads sums for the scores, 4 * kHeads for the values.
constexpr int kHeadBlock = F32x16::kRegisters >= 32 ? 4 : 1;

// The running state of a task's softmax, in the task's scratch. A vector is one query head of one row: row * group + head.
struct AttentionState {
  KvTile tile;     // the one in progress
  float* q;        // [vectors][head_dim], scaled
  float* sums;     // [vectors][value_dim], weighted values
  float* largest;  // [vectors], score so far
  float* totals;   // [vectors], sum of weights
  float* scores;   // [group][32], of the row in progress
  float bases[kMaxHeadGroup] = {}, corrections[kMaxHeadGroup] = {};
  static_assert(kMaxHeadGroup % 16 == 0);
};

// A sink is a score without a value, with which the running state begins.
inline AttentionState BeginAttention(const AttentionTask& t) {
  const int64_t dims = t.head_dim, value_dims = t.value_dim, group = t.group, vectors = t.num_rows * group;
  float* at = t.scratch;
  const auto take = [&](int64_t count) {
    float* taken = at;
    at += (count + 15) / 16 * 16;
    return taken;
  };
  AttentionState state;
  state.tile.keys = take(dims * kAttentionTile);
  state.tile.values = take(value_dims * kAttentionTile);
  state.q = take(vectors * dims);
  state.sums = take(vectors * value_dims);
  state.largest = take(vectors);
  state.totals = take(vectors);
  state.scores = take(group * kAttentionTile);
  const F32x16 scale = F32x16::Broadcast(t.scale);
  for (int64_t row = 0; row < t.num_rows; ++row) {
    for (int64_t i = 0; i < group * dims; i += 16) {
      (F32x16::Load(t.q + row * t.q_stride + i) * scale).Store(state.q + row * group * dims + i);
    }
    for (int64_t i = 0; i < group * value_dims; i += 16) F32x16::Zero().Store(state.sums + row * group * value_dims + i);
    for (int64_t h = 0; h < group; ++h) {
      state.largest[row * group + h] = t.sinks == nullptr ? -kInfinity : t.sinks[h];
      state.totals[row * group + h] = t.sinks == nullptr ? 0 : 1;
    }
  }
  return state;
}

// Turns the scores of one row into weights, and updates the row's largest scores and totals. Bit i of `seen`: the row sees
// position i of the tile. Leaves in state.corrections the factors of the weights before this tile.
inline void UpdateSoftmax(AttentionState& state, int64_t row, int64_t group, uint32_t seen) {
  const F32x16 nothing = F32x16::Broadcast(-kInfinity);
  for (int64_t head = 0; head < group; ++head) {
    float* s = state.scores + head * kAttentionTile;
    const F32x16 low = Select(seen, F32x16::Load(s), nothing), high = Select(seen >> 16, F32x16::Load(s + 16), nothing);
    low.Store(s), high.Store(s + 16);
    float& running = state.largest[row * group + head];
    const float tile_largest = MaxOf(Max(low, high));
    const float now = tile_largest > running ? tile_largest : running;
    // With minus infinity alone so far, weights are 0; the base 0 avoids infinity minus itself.
    state.bases[head] = now == -kInfinity ? 0 : now;
    state.corrections[head] = running - state.bases[head];
    running = now;
  }
  for (int64_t head = 0; head < group; head += 16) {
    Exp(F32x16::Load(state.corrections + head)).Store(state.corrections + head);
  }
  for (int64_t head = 0; head < group; ++head) {
    float* s = state.scores + head * kAttentionTile;
    const F32x16 base = F32x16::Broadcast(state.bases[head]);
    const F32x16 low = Exp(F32x16::Load(s) - base), high = Exp(F32x16::Load(s + 16) - base);
    low.Store(s), high.Store(s + 16);
    float& total = state.totals[row * group + head];
    total = total * state.corrections[head] + SumOf(low + high);
  }
}

// Adds positions [first, end) of the tile in progress to one row.
inline void AttendTile(const AttentionTask& t, AttentionState& state, int64_t row, int64_t first, int64_t end) {
  const int64_t dims = t.head_dim, value_dims = t.value_dim, group = t.group;
  const float* const q = state.q + row * group * dims;
  int64_t head = 0;
  for (; head + kHeadBlock <= group; head += kHeadBlock) {
    Scores<kHeadBlock>(q + head * dims, dims, state.tile.keys, state.scores + head * kAttentionTile);
  }
  for (; head < group; ++head) Scores<1>(q + head * dims, dims, state.tile.keys, state.scores + head * kAttentionTile);

  UpdateSoftmax(state, row, group, static_cast<uint32_t>(((uint64_t{1} << end) - 1) & ~((uint64_t{1} << first) - 1)));
  float* const sums = state.sums + row * group * value_dims;
  head = 0;
  for (; head + kHeadBlock <= group; head += kHeadBlock) {
    AddValuesOfHeads<kHeadBlock>(state.scores + head * kAttentionTile, state.tile.values, value_dims, first, end,
                                 state.corrections + head, sums + head * value_dims);
  }
  for (; head < group; ++head) {
    AddValuesOfHeads<1>(state.scores + head * kAttentionTile, state.tile.values, value_dims, first, end, state.corrections + head,
                        sums + head * value_dims);
  }
}

inline void EndAttention(const AttentionTask& t, const AttentionState& state) {
  const int64_t dims = t.value_dim, group = t.group;
  for (int64_t row = 0; row < t.num_rows; ++row) {
    for (int64_t h = 0; h < group; ++h) {
      const int64_t vector = row * group + h;
      const F32x16 inverse = F32x16::Broadcast(1.0f / state.totals[vector]);
      for (int64_t dim = 0; dim < dims; dim += 16) {
        (F32x16::Load(state.sums + vector * dims + dim) * inverse).Store(t.out + row * t.out_stride + h * dims + dim);
      }
    }
  }
}

// The softmax runs over tiles of absolute positions (largest score so far, sum of weights, weighted values), so that a row's
// result depends neither on the chunk it came in nor on the rows of its task.
void Attention(const AttentionTask& t) {
  AttentionState state = BeginAttention(t);
  const auto first_seen = [&](int64_t position) {
    return t.window > 0 && position - t.window + 1 > 0 ? position - t.window + 1 : 0;
  };
  const int64_t last_position = t.first_position + t.num_rows - 1;
  for (int64_t number = first_seen(t.first_position) / kAttentionTile; number <= last_position / kAttentionTile; ++number) {
    LoadTile(t, number, state.tile);
    if (number < last_position / kAttentionTile) PrefetchTile(t, number + 1);
    const int64_t tile_position = number * kAttentionTile;
    for (int64_t row = 0; row < t.num_rows; ++row) {
      const int64_t position = t.first_position + row;
      const int64_t first = first_seen(position) > tile_position ? first_seen(position) - tile_position : 0;
      const int64_t end = position + 1 - tile_position < kAttentionTile ? position + 1 - tile_position : kAttentionTile;
      if (first < end) AttendTile(t, state, row, first, end);  // otherwise the row sees no position of this tile
    }
  }
  EndAttention(t, state);
}

}  // namespace
}  // namespace ferry
