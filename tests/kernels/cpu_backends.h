#pragma once

// What the tests of the CPU backend share: one CpuOps per instruction set, and buffers that notice a write beside them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"
#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

// Those of the family that the tests are built for.
#if defined(__aarch64__)
inline constexpr CpuIsa kTestedIsas[] = {CpuIsa::kPortable, CpuIsa::kNeon, CpuIsa::kDotprod, CpuIsa::kI8mm};
#else
inline constexpr CpuIsa kTestedIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx};
#endif

// A test that runs once per instruction set; where the machine or the build lacks it, skipped saying so.
template <typename Case>
class PerIsaTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const absl::StatusOr<const CpuKernels*> kernels = SelectKernels(NameOf(isa()));
    if (!kernels.ok()) GTEST_SKIP() << kernels.status().message();
  }
  CpuIsa isa() const { return this->GetParam().isa; }

  // Threads beyond the cores share them, which is what a test of their number needs.
  std::unique_ptr<Ops> MakeOps(int num_threads = 2) const {
    BackendOptions options;
    options.isa = std::string(NameOf(isa()));
    options.num_threads = num_threads;
    options.pin_threads = false;
    absl::StatusOr<std::unique_ptr<Ops>> ops = CreateCpuOps(options);
    if (!ops.ok()) {
      ADD_FAILURE() << ops.status().ToString();
      std::abort();
    }
    return *std::move(ops);
  }
};

struct IsaCase {
  CpuIsa isa;
};
inline std::string NameOfCase(const testing::TestParamInfo<IsaCase>& info) { return std::string(NameOf(info.param.isa)); }
inline std::vector<IsaCase> EachIsa() {
  std::vector<IsaCase> cases;
  for (const CpuIsa isa : kTestedIsas) cases.push_back({isa});
  return cases;
}

// Rows of floats with `kGuard` untouchable floats before, between and after them.
class GuardedRows {
 public:
  GuardedRows(int64_t rows, int64_t cols, float fill = -7)
      : rows_(rows), cols_(cols), memory_((rows * (cols + kGuard) + kGuard), kPattern) {
    for (int64_t row = 0; row < rows; ++row) std::fill_n(Row(row), cols, fill);
  }
  Tensor tensor() { return {memory_.data() + kGuard, DType::kF32, rows_, cols_, cols_ + kGuard}; }
  float* Row(int64_t row) { return memory_.data() + kGuard + row * (cols_ + kGuard); }
  void Fill(const std::vector<float>& values) {
    for (int64_t row = 0; row < rows_; ++row) std::memcpy(Row(row), values.data() + row * cols_, cols_ * 4);
  }
  std::vector<float> Values() {
    std::vector<float> values;
    for (int64_t row = 0; row < rows_; ++row) values.insert(values.end(), Row(row), Row(row) + cols_);
    return values;
  }
  bool GuardsIntact() {
    for (int64_t row = -1; row < rows_; ++row) {
      const float* guard = row < 0 ? memory_.data() : Row(row) + cols_;
      for (int64_t i = 0; i < kGuard; ++i) {
        if (guard[i] != kPattern) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 16;
  static constexpr float kPattern = 12345.5f;
  int64_t rows_, cols_;
  std::vector<float> memory_;
};

// Bit for bit, NaN included.
inline testing::AssertionResult SameBits(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return testing::AssertionFailure() << got.size() << " numbers, want " << want.size();
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], 4) != 0) {
      return testing::AssertionFailure() << "[" << i << "] is " << got[i] << ", want the bits of " << want[i];
    }
  }
  return testing::AssertionSuccess();
}

// What whole numbers with a scale for every `columns` of a row of `cols`, or for what is left of it, make of rows of `values`:
// the largest of them is 127 steps, each of `parts`.
inline std::vector<float> QuantizedActivations(std::vector<float> values, float parts, int64_t cols, int64_t columns = 32) {
  for (int64_t row = 0; row < static_cast<int64_t>(values.size()); row += cols) {
    for (int64_t first = row; first < row + cols; first += columns) {
      const std::span<float> shared = std::span(values).subspan(first, std::min(columns, row + cols - first));
      float largest = 0;
      for (const float value : shared) largest = std::max(largest, std::abs(value));
      const float scale = std::max(largest / 127.0f, 0x1p-60f);
      for (float& value : shared) value = std::nearbyint(value * (1.0f / scale) * parts) / parts * scale;
    }
  }
  return values;
}
// With AMX two blocks share a scale beside MXFP4 (Activations::kPaired).
inline int64_t ColumnsOfAScale(CpuIsa isa, DType weights) { return isa == CpuIsa::kAmx && weights == DType::kMXFP4 ? 64 : 32; }

inline Tensor TensorOf(std::vector<float>& values, int64_t rows, int64_t cols) {
  return {values.data(), DType::kF32, rows, cols};
}

}  // namespace ferry
