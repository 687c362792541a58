// Plain C++: runs on every processor, and is the shortest statement of what the other tables compute.

#include <cstring>

#include "kernels/cpu/simd_portable.h"
#include "kernels/cpu/vector_kernels.h"

namespace ferry {
namespace {

constexpr int64_t kChunkRows = 256;  // rows whose sums wait in scratch

// `count` codes of weights times as many of activations.
int32_t Dot(const int8_t* w, const int8_t* x, int count) {
  int32_t dot = 0;
  for (int c = 0; c < count; ++c) dot += static_cast<int16_t>(w[c]) * static_cast<int16_t>(x[c]);
  return dot;
}

// One row's fields of an entry, from where the fields of 16 rows begin, side by side.
template <typename FieldList>
void GatherFields(const std::byte* entry, int64_t row, uint8_t* part) {
  for (const int size : FieldList::kSizes) {
    std::memcpy(part, entry + row * size, static_cast<size_t>(size));
    entry += kLanes * size, part += size;
  }
}

// sum + the product of one block of weights and one of activations. Minima join the sum of the activations of their columns,
// which is the offset.
template <typename F>
float AddBlock(float sum, const IntegerBlock& w, const std::byte* in) {
  constexpr Activations kKind = kActivationsOf<F>;
  const int8_t* x = CodesOf(in);
  const float in_scale = *ScaleOf(in, kKind);
  const int32_t* offsets = OffsetOf(in, kKind);
  if constexpr (kKind == Activations::kHalves) {
    for (int half = 0; half < 2; ++half) {
      sum = Fma(static_cast<float>(Dot(w.codes + 16 * half, x + 16 * half, 16)), w.scale[half] * in_scale, sum);
      if (F::kMins) sum = Fma(static_cast<float>(offsets[half]) * in_scale, w.min[half] * (1.0f / 128), sum);
    }
  } else {
    int32_t dot = Dot(w.codes, x, kBlock);
    if (kKind == Activations::kWide) dot = 128 * dot + Dot(w.codes, x + kBlock, kBlock);
    sum = Fma(static_cast<float>(dot), w.scale[0] * in_scale, sum);
    if (F::kMins) sum = Fma(static_cast<float>(*offsets) * in_scale, w.min[0] * (1.0f / 128), sum);
  }
  return sum;
}

template <typename F>
void IntegerProduct(const PanelProduct& p) {
  float* const sums = reinterpret_cast<float*>(p.scratch);  // [kChunkRows][16]
  const int64_t scale_blocks = p.num_blocks / F::kTilesPerScale;
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
      const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
      for (int64_t i = 0; i < num_rows * kLanes; ++i) sums[i] = 0;
      for (int64_t block = 0; block < p.num_blocks; ++block) {
        const std::byte* codes = p.codes + (tile * p.num_blocks + block) * kLanes * F::kCodeBytes;
        const std::byte* scales = p.scales + (tile * scale_blocks + block / F::kTilesPerScale) * kLanes * F::kScaleBytes;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          uint8_t row_codes[F::kCodeBytes], row_scales[F::kScaleBytes + 1];
          GatherFields<typename F::CodeFields>(codes, lane, row_codes);
          GatherFields<typename F::ScaleFields>(scales, lane, row_scales);
          const auto* header = reinterpret_cast<const uint8_t*>(p.row_headers) + (tile * kLanes + lane) * F::kRowBytes;
          IntegerBlock w;
          F::Block(row_codes, row_scales, header, static_cast<int>(block % F::kTilesPerScale), w);
          for (int64_t i = 0; i < num_rows; ++i) {
            const int64_t in_row = p.in_rows == nullptr ? first_row + i : p.in_rows[first_row + i];
            const std::byte* in = p.in->blocks + in_row * p.in->row_stride + block * BlockBytes(kActivationsOf<F>);
            sums[i * kLanes + lane] = AddBlock<F>(sums[i * kLanes + lane], w, in);
          }
        }
      }
      StoreTile(p, first_row, num_rows, tile, sums, kLanes);
    }
  }
}

void PanelProductPortable(const PanelProduct& p) {
  WithFormat(p.dtype, [&]<DType kType>() {
    if constexpr (Format<kType>::kInteger) {
      IntegerProduct<Format<kType>>(p);
    } else {
      FloatPanelProduct(p);
    }
  });
}

constexpr CpuKernels kTable = {"portable",   QuantizeRow, GluBlocks, Glu,       PanelProductPortable,
                               FloatProduct, RmsNormRow,  Attention, LogSumExp, Delta};

}  // namespace

const CpuKernels* PortableKernels() { return &kTable; }

}  // namespace ferry
