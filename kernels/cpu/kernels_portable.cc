// Plain C++: runs on every processor, and is the shortest statement of what the other tables compute.

#include <bit>
#include <cstring>

#include "common/half.h"
#include "kernels/cpu/simd_portable.h"
#include "kernels/cpu/vector_kernels.h"

namespace ferry {
namespace {

constexpr int64_t kChunkRows = 256;  // rows whose sums wait in scratch

// One row's block as whole numbers and their scale. Bounds of MXFP4's scale: see kernels_avx512.cc.
float DecodeBlock(DType dtype, const std::byte* codes, const std::byte* scale, int8_t (&w)[kBlock]) {
  if (dtype == DType::kMXFP4) {
    for (int j = 0; j < kBlock / 2; ++j) {
      const int both = std::to_integer<int>(codes[j]);
      w[j] = kFp4Doubled[both & 15], w[j + 16] = kFp4Doubled[both >> 4];
    }
    const int biased = std::to_integer<int>(*scale);
    const uint32_t exponent = static_cast<uint32_t>((biased < 64 ? 64 : biased > 192 ? 192 : biased) - 1);
    return std::bit_cast<float>(exponent << 23);
  }
  uint16_t half;
  std::memcpy(&half, scale, 2);
  if (dtype == DType::kQ8_0) {
    std::memcpy(w, codes, kBlock);
  } else {
    for (int j = 0; j < kBlock / 2; ++j) {
      const int both = std::to_integer<int>(codes[j]);
      w[j] = static_cast<int8_t>((both & 15) - 8), w[j + 16] = static_cast<int8_t>((both >> 4) - 8);
    }
  }
  return HalfToFloat(half);
}

int32_t Dot(const int8_t (&w)[kBlock], const int8_t* x) {
  int32_t dot = 0;
  for (int c = 0; c < kBlock; ++c) dot += static_cast<int16_t>(w[c]) * static_cast<int16_t>(x[c]);
  return dot;
}

void IntegerProduct(const PanelProduct& p) {
  const Activations kind = ActivationsFor(p.dtype);
  const int64_t code_bytes = p.dtype == DType::kQ8_0 ? 32 : 16, scale_bytes = p.dtype == DType::kMXFP4 ? 1 : 2;
  float* const sums = reinterpret_cast<float*>(p.scratch);  // [kChunkRows][16]
  for (int64_t tile = 0; tile * kLanes < p.num_outputs; ++tile) {
    for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
      const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
      for (int64_t i = 0; i < num_rows * kLanes; ++i) sums[i] = 0;
      for (int64_t block = 0; block < p.num_blocks; ++block) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t number = (tile * p.num_blocks + block) * kLanes + lane;
          int8_t w[kBlock];
          const float scale = DecodeBlock(p.dtype, p.codes + number * code_bytes, p.scales + number * scale_bytes, w);
          for (int64_t i = 0; i < num_rows; ++i) {
            const int64_t in_row = p.in_rows == nullptr ? first_row + i : p.in_rows[first_row + i];
            const std::byte* in = p.in->blocks + in_row * p.in->row_stride + block * BlockBytes(kind);
            const int8_t* x = CodesOf(in);
            int32_t dot = Dot(w, x);
            if (kind == Activations::kWide) dot = 128 * dot + Dot(w, x + kBlock);
            const float product = scale * *ScaleOf(in, kind);
            sums[i * kLanes + lane] += static_cast<float>(dot) * product;
          }
        }
      }
      StoreTile(p, first_row, num_rows, tile, sums, kLanes);
    }
  }
}

void PanelProductPortable(const PanelProduct& p) {
  switch (p.dtype) {
    case DType::kMXFP4:
    case DType::kQ4_0:
    case DType::kQ8_0:
      return IntegerProduct(p);
    default:
      return FloatPanelProduct(p);
  }
}

constexpr CpuKernels kTable = {"portable",   QuantizeRow, GluBlock,  Glu,      PanelProductPortable,
                               FloatProduct, RmsNormRow,  Attention, LogSumExp};

}  // namespace

const CpuKernels* PortableKernels() { return &kTable; }

}  // namespace ferry
