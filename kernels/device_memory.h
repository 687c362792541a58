#pragma once

// Memory of a device, what lies in it, and moments in its queues.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/time/time.h"
#include "common/model/dtype.h"

namespace ferry {

// Device memory with one owner; freed on destruction.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::byte* data, int64_t bytes, std::function<void(std::byte*)> free)
      : data_(data), bytes_(bytes), free_(std::move(free)) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(free_, other.free_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr && free_) free_(data_);
  }
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  std::function<void(std::byte*)> free_;
};

// Rows of numbers in device memory, row-major: row r begins at element r * stride. Types: F32, BF16, F16.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0, stride = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride = 0)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride == 0 ? cols : stride) {}
  int64_t element_bytes() const { return dtype == DType::kF32 ? 4 : 2; }
  Tensor Rows(int64_t first, int64_t count) const {
    return {static_cast<std::byte*>(data) + first * stride * element_bytes(), dtype, count, cols, stride};
  }
  Tensor Cols(int64_t first, int64_t count) const {
    return {static_cast<std::byte*>(data) + first * element_bytes(), dtype, rows, count, stride};
  }
};

// A moment in a queue. Copies of an Event share it; a default-constructed Event has passed.
class EventState {
 public:
  virtual ~EventState() = default;
};
using Event = std::shared_ptr<EventState>;

// One piece of work of a queue and the time at which the device did it, on this host's clock.
struct TimelineSpan {
  enum class Queue : uint8_t { kCompute, kCopy };
  const char* name = "";  // a string literal: the operation's name, or kWaitSpan
  Queue queue = Queue::kCompute;
  absl::Time begin, end;
};
inline constexpr char kWaitSpan[] = "wait";  // the compute queue waited for the event of a ComputeAfter

struct DeviceMemoryInfo {
  int64_t free_bytes = 0, total_bytes = 0;
  bool of_host = false;  // the device has no memory beside the host's
};

}  // namespace ferry
