#include "common/model/random_blocks.h"

#include <algorithm>
#include <cmath>

#include "common/model/formats/formats.h"

namespace ferry {
namespace {

void FillBits(const std::function<uint64_t()>& random, uint8_t* out, int count) {
  for (int at = 0; at < count; at += 8) {
    const uint64_t bits = random();
    std::memcpy(out + at, &bits, static_cast<size_t>(std::min(8, count - at)));
  }
}

// Sets the scale that a block of random bits has; of a type whose scale is the row's, that of its row.
template <typename F>
void SetScaleOf(uint8_t* row, uint8_t* block, float scale) {
  if constexpr (F::kRowBytes == 4) {
    StoreAs(row, scale);
  } else if constexpr (F::kRowBytes == 2) {
    StoreAs(row, FloatToHalf(scale));
  } else if constexpr (requires { &F::SetScale; }) {
    F::SetScale(block, scale);
  } else if constexpr (requires { F::kScaleAt; }) {
    StoreAs(block + F::kScaleAt, FloatToHalf(scale));
    if constexpr (requires { F::kMinAt; }) StoreAs(block + F::kMinAt, FloatToHalf(scale * F::kMinPerScale));
  }
}

// Root mean square of the values of random blocks of scale 1.
template <typename F>
double UnitRms() {
  constexpr int kBlocks = 256;
  uint64_t state = 1;
  const auto random = [&state] {  // SplitMix64
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  };
  double squares = 0;
  for (int i = 0; i < kBlocks; ++i) {
    uint8_t row[F::kRowBytes + 1], block[F::kUnitBytes];
    FillBits(random, block, F::kUnitBytes);
    SetScaleOf<F>(row, block, 1);
    Parts<F> parts;
    F::Move(ToParts(block), parts);
    for (int tile = 0; tile < F::kTiles; ++tile) {
      float values[kTileCols];
      ValuesOf<F>(parts.codes[tile], parts.scales[tile / F::kTilesPerScale], row, tile % F::kTilesPerScale, values);
      for (const float value : values) squares += static_cast<double>(value) * value;
    }
  }
  return std::sqrt(squares / (kBlocks * F::kUnitCols));
}

template <typename F>
void FillBlocks(int64_t cols, double rms, const std::function<uint64_t()>& random, std::span<std::byte> out) {
  static const double unit = UnitRms<F>();
  const int64_t blocks = F::kRowBytes > 0 ? cols / F::kBlockCols : 1;  // between two headers
  auto* at = reinterpret_cast<uint8_t*>(out.data());
  uint8_t* const end = at + out.size();
  while (at < end) {
    uint8_t* const row = at;
    at += F::kRowBytes;
    for (int64_t block = 0; block < blocks; ++block, at += F::kBlockBytes) {
      FillBits(random, at, F::kBlockBytes);
      // Of either sign, which cancels a mean of the codes, and of half to one and a half times the size.
      const uint64_t bits = random();
      const double size = rms / unit * (0.5 + static_cast<double>(bits >> 32) * 0x1p-32);
      SetScaleOf<F>(row, at, static_cast<float>((bits & 1) != 0 ? size : -size));
    }
  }
}

}  // namespace

void FillRandomBlocks(DType dtype, int64_t cols, double rms, const std::function<uint64_t()>& random, std::span<std::byte> out) {
  WithFormat(dtype, [&]<DType kType>() {
    if constexpr (Format<kType>::kInteger) FillBlocks<Format<kType>>(cols, rms, random, out);
  });
}

}  // namespace ferry
