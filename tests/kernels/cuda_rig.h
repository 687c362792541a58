#pragma once

// What the tests of the CUDA backend share: the backend, device buffers between guard bytes, and the reference beside
// it.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/half.h"
#include "kernels/cuda/cuda_devices.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"
#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

// The value after rounding to `dtype`.
inline float Rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return BFloat16ToFloat(FloatToBFloat16(value));
  if (dtype == DType::kF16) return HalfToFloat(FloatToHalf(value));
  return value;
}
inline std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  for (float& value : values) value = Rounded(value, dtype);
  return values;
}
// The largest relative error of one rounding to `dtype`.
inline double RoundingOf(DType dtype) { return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-23; }

inline std::vector<std::byte> Encoded(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> out(values.size() * (dtype == DType::kF32 ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(out.data() + 4 * i, &values[i], 4);
    } else {
      const uint16_t bits = dtype == DType::kBF16 ? FloatToBFloat16(values[i]) : FloatToHalf(values[i]);
      std::memcpy(out.data() + 2 * i, &bits, 2);
    }
  }
  return out;
}
inline std::vector<float> DecodedAs(std::span<const std::byte> bytes, DType dtype) {
  std::vector<float> out(bytes.size() / (dtype == DType::kF32 ? 4 : 2));
  for (size_t i = 0; i < out.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&out[i], bytes.data() + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + 2 * i, 2);
      out[i] = dtype == DType::kBF16 ? BFloat16ToFloat(bits) : HalfToFloat(bits);
    }
  }
  return out;
}
template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

// Device memory between guard bytes, everything poisoned with 0xFF (NaN in every float type).
class GuardedBytes {
 public:
  static constexpr int64_t kGuard = 1024;

  GuardedBytes(Ops* ops, int64_t bytes) : ops_(ops), bytes_(bytes) {
    auto memory = ops->Allocate(bytes + 2 * kGuard);
    EXPECT_OK(memory);
    memory_ = *std::move(memory);
    EXPECT_OK(ops->Upload(memory_.data(), BytesOf(std::vector<uint8_t>(bytes + 2 * kGuard, 0xFF))));
  }
  GuardedBytes(Ops* ops, std::span<const std::byte> contents) : GuardedBytes(ops, static_cast<int64_t>(contents.size())) {
    EXPECT_OK(ops->Upload(data(), contents));
  }
  std::byte* data() const { return memory_.data() + kGuard; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }

  // The contents, after a look at the guards.
  std::vector<std::byte> Read() const {
    std::vector<std::byte> all(bytes_ + 2 * kGuard);
    EXPECT_OK(ops_->Download(all, memory_.data()));
    for (int64_t i = 0; i < kGuard; ++i) {
      const bool kept = all[i] == std::byte{0xFF} && all[kGuard + bytes_ + i] == std::byte{0xFF};
      EXPECT_TRUE(kept) << "guard byte " << i << " was overwritten";
      if (!kept) break;
    }
    return {all.begin() + kGuard, all.begin() + kGuard + bytes_};
  }
  template <typename T>
  std::vector<T> ReadAs() const {
    const std::vector<std::byte> bytes = Read();
    std::vector<T> out(bytes.size() / sizeof(T));
    std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
    return out;
  }

 private:
  Ops* ops_;
  int64_t bytes_;
  DeviceBuffer memory_;
};

// Rows in guarded device memory, `gap` elements of poison after each.
class DeviceRowsBuffer {
 public:
  DeviceRowsBuffer(Ops* ops, DType dtype, int64_t rows, int64_t cols, int64_t gap = 0)
      : memory_(ops, rows * (cols + gap) * (dtype == DType::kF32 ? 4 : 2)),
        tensor_(memory_.data(), dtype, rows, cols, cols + gap) {}
  DeviceRowsBuffer(Ops* ops, DType dtype, const std::vector<float>& values, int64_t rows, int64_t cols, int64_t gap = 0)
      : DeviceRowsBuffer(ops, dtype, rows, cols, gap) {
    for (int64_t row = 0; row < rows; ++row) {
      EXPECT_OK(ops->Upload(tensor_.Rows(row, 1).data,
                            Encoded({values.begin() + row * cols, values.begin() + (row + 1) * cols}, dtype)));
    }
  }
  const Tensor& tensor() const { return tensor_; }
  // Row-major [rows, cols], after a look at the guards and the gaps.
  std::vector<float> Read() const {
    const std::vector<std::byte> bytes = memory_.Read();
    const int64_t element = tensor_.element_bytes();
    std::vector<float> out;
    for (int64_t row = 0; row < tensor_.rows; ++row) {
      const std::span<const std::byte> line(bytes.data() + row * tensor_.stride * element, tensor_.stride * element);
      const std::vector<float> values = DecodedAs(line.first(tensor_.cols * element), tensor_.dtype);
      out.insert(out.end(), values.begin(), values.end());
      for (const std::byte byte : line.subspan(tensor_.cols * element)) {
        EXPECT_EQ(byte, std::byte{0xFF}) << "the gap after row " << row << " was overwritten";
      }
    }
    return out;
  }

 private:
  GuardedBytes memory_;
  Tensor tensor_;
};

// A host tensor over a vector, for the reference.
inline Tensor HostTensor(std::vector<float>& values, int64_t rows, int64_t cols) {
  return {values.data(), DType::kF32, rows, cols};
}

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU on this machine";
    static Ops* const shared = [] {
      auto ops = CreateCudaOps({});
      EXPECT_OK(ops);
      return ops.ok() ? ops->release() : nullptr;
    }();
    ASSERT_NE(shared, nullptr);
    ops_ = shared;
  }
  DType act() const { return ops_->activation_dtype(); }

  Ops* ops_ = nullptr;
  ReferenceOps reference_;
};
template <typename Case>
class CudaCaseTest : public CudaTest, public testing::WithParamInterface<Case> {};

}  // namespace ferry
