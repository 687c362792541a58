#pragma once

// Seeded random numbers, matrices and expert records. The same seed gives the same bytes on every machine, so a test that
// prints its seed can be run again.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "common/model/expert_layout.h"
#include "common/model/tiled_layout.h"

namespace ferry {

// Memory on 4 KiB, so that it may take the place of device memory or an arena; zeroed.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t bytes = 0);

  std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  std::span<std::byte> span() const { return {data_.get(), static_cast<size_t>(size_)}; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t size_ = 0;
};

// A stream of 64-bit numbers (SplitMix64).
class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  int64_t Below(int64_t limit) { return static_cast<int64_t>(Uniform() * static_cast<double>(limit)); }
  // Mean 0, variance 1.
  double Normal();

 private:
  uint64_t state_;
};

// `count` normal numbers times `scale`.
std::vector<float> RandomFloats(int64_t count, uint64_t seed, float scale = 1);

// A matrix as GGUF stores it, row after row. Codes are uniform over the type's range, scales vary from block to block
// within a factor of four or eight; the values have about the root mean square `rms`.
std::vector<std::byte> RandomGgufRows(DType dtype, int64_t rows, int64_t cols, uint64_t seed, float rms = 1);

// The same matrix in the tiled layout, with its memory.
struct OwnedTiledMatrix {
  AlignedBytes memory;
  TiledMatrix matrix;
  // Row-major [rows, cols].
  std::vector<float> Decoded() const;
};
OwnedTiledMatrix RandomTiledMatrix(DType dtype, int64_t rows, int64_t cols, uint64_t seed, float rms = 1);
// A matrix of given values [rows, cols] in F32.
OwnedTiledMatrix TiledMatrixOf(const std::vector<float>& values, int64_t rows, int64_t cols);

// One expert's record: matrices with an rms of 1 / sqrt(columns), so that activations keep their size, and biases of 0.1.
AlignedBytes RandomExpertRecord(const ExpertLayout& layout, uint64_t seed);

}  // namespace ferry
