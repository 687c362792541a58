#include "tests/testing/random_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numbers>

#include "common/half.h"
#include "common/model/random_blocks.h"

namespace ferry {
namespace {

// A test that asks for a matrix that cannot be has a mistake in it.
template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "random_tensors: %s\n", value.status().ToString().c_str());
    std::abort();
  }
  return *std::move(value);
}
void Must(const absl::Status& status) { Must(status.ok() ? absl::StatusOr<bool>(true) : status); }

template <typename T>
std::byte* Put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(value));
  return at + sizeof(value);
}

// Root mean square of uniformly drawn codes, scale 1.
double CodeRms(DType dtype) {
  switch (dtype) {
    case DType::kMXFP4:
      return 2.93;  // sqrt((0 + .25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8)
    case DType::kQ4_0:
      return 4.64;  // of -8 to 7
    case DType::kQ8_0:
      return 73.3;  // of -127 to 127
    default:
      return 1;
  }
}

}  // namespace

AlignedBytes::AlignedBytes(int64_t bytes) : size_(bytes) {
  const size_t rounded = (static_cast<size_t>(std::max<int64_t>(bytes, 1)) + 4095) / 4096 * 4096;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, rounded)));
  if (data_ == nullptr) std::abort();
  std::memset(data_.get(), 0, rounded);
}

double RandomBits::Normal() {
  const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
  return radius * std::cos(2 * std::numbers::pi * Uniform());
}

std::vector<float> RandomFloats(int64_t count, uint64_t seed, float scale) {
  RandomBits random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random.Normal()) * scale;
  return values;
}

std::vector<std::byte> RandomGgufRows(DType dtype, int64_t rows, int64_t cols, uint64_t seed, float rms) {
  const TiledLayout layout = Must(TiledLayout::Create(dtype, rows, cols));
  RandomBits random(seed);
  const double unit = rms / CodeRms(dtype);
  // The blocks cover whole tiles, so padded columns have bytes too.
  std::vector<std::byte> bytes(rows * (layout.gguf_row_bytes() + (layout.padded_cols() - cols) * layout.code_bytes / kTileCols));
  std::byte* at = bytes.data();
  for (int64_t block = 0; block < rows * layout.col_blocks(); ++block) {
    if (dtype == DType::kMXFP4) {
      // Three powers of two around the unit.
      const double exponent = std::floor(std::log2(unit)) + static_cast<double>(random.Below(3)) - 1;
      at = Put(at, static_cast<uint8_t>(std::clamp(exponent + 127, 1.0, 254.0)));
    } else if (layout.scale_bytes == 2) {
      at = Put(at, FloatToHalf(static_cast<float>(unit * (0.25 + 1.5 * random.Uniform()))));
    }
    switch (dtype) {
      case DType::kMXFP4:
      case DType::kQ4_0:
        for (int i = 0; i < 16; ++i) at = Put(at, static_cast<uint8_t>(random.Next() >> 56));
        break;
      case DType::kQ8_0:
        for (int i = 0; i < 32; ++i) at = Put(at, static_cast<int8_t>(random.Below(255) - 127));
        break;
      case DType::kF16:
        for (int i = 0; i < 32; ++i) at = Put(at, FloatToHalf(static_cast<float>(random.Normal() * rms)));
        break;
      case DType::kBF16:
        for (int i = 0; i < 32; ++i) at = Put(at, FloatToBFloat16(static_cast<float>(random.Normal() * rms)));
        break;
      case DType::kF32:
        for (int i = 0; i < 32; ++i) at = Put(at, static_cast<float>(random.Normal() * rms));
        break;
      default:
        FillRandomBlocks(
            dtype, cols, rms, [&] { return random.Next(); }, bytes);
        return bytes;
    }
  }
  bytes.resize(rows * layout.gguf_row_bytes());
  return bytes;
}

std::vector<float> OwnedTiledMatrix::Decoded() const {
  std::vector<float> values(matrix.layout.rows * matrix.layout.cols);
  for (int64_t row = 0; row < matrix.layout.rows; ++row) {
    DecodeTiledRow(matrix, row, values.data() + row * matrix.layout.cols);
  }
  return values;
}

OwnedTiledMatrix RandomTiledMatrix(DType dtype, int64_t rows, int64_t cols, uint64_t seed, float rms) {
  const TiledLayout layout = Must(TiledLayout::Create(dtype, rows, cols));
  OwnedTiledMatrix owned{AlignedBytes(layout.bytes), {}};
  Must(TileRows(layout, 0, rows, RandomGgufRows(dtype, rows, cols, seed, rms), owned.memory.span()));
  owned.matrix = {layout, owned.memory.data()};
  return owned;
}

OwnedTiledMatrix TiledMatrixOf(const std::vector<float>& values, int64_t rows, int64_t cols) {
  const TiledLayout layout = Must(TiledLayout::Create(DType::kF32, rows, cols));
  OwnedTiledMatrix owned{AlignedBytes(layout.bytes), {}};
  Must(TileRows(layout, 0, rows, std::as_bytes(std::span(values)), owned.memory.span()));
  owned.matrix = {layout, owned.memory.data()};
  return owned;
}

AlignedBytes RandomExpertRecord(const ExpertLayout& layout, uint64_t seed) {
  AlignedBytes record(layout.bytes);
  const auto fill = [&](const TiledLayout& matrix, int64_t offset, uint64_t salt) {
    const float rms = 1 / std::sqrt(static_cast<float>(matrix.cols));
    Must(TileRows(matrix, 0, matrix.rows, RandomGgufRows(matrix.dtype, matrix.rows, matrix.cols, seed * 8 + salt, rms),
                  record.span().subspan(offset, matrix.bytes)));
  };
  fill(layout.gate, layout.gate_offset, 0);
  fill(layout.up, layout.up_offset, 1);
  fill(layout.down, layout.down_offset, 2);
  if (layout.has_bias) {
    const auto fill_bias = [&](int64_t rows, int64_t offset, uint64_t salt) {
      const std::vector<float> bias = RandomFloats(rows, seed * 8 + salt, 0.1f);
      std::memcpy(record.data() + offset, bias.data(), bias.size() * sizeof(float));
    };
    fill_bias(layout.gate.rows, layout.gate_bias_offset, 3);
    fill_bias(layout.up.rows, layout.up_bias_offset, 4);
    fill_bias(layout.down.rows, layout.down_bias_offset, 5);
  }
  return record;
}

}  // namespace ferry
