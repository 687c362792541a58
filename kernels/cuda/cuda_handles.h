#pragma once

// Owners of CUDA runtime objects, and the function that turns CUDA errors into a Status. Host code only.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "common/status.h"

namespace ferry::cuda {

// OK, or "what: text (name)". ResourceExhausted: out of memory. FailedPrecondition: the machine or its driver lacks
// something. Internal: anything else, a fault of a kernel included.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// A queue of the device that was current at Create; it does not wait for the default queue.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();
  Stream() = default;
  Stream(Stream&& other) noexcept { *this = std::move(other); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();  // queued work still runs
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream, without a time.
class StreamEvent {
 public:
  static absl::StatusOr<StreamEvent> Create();
  StreamEvent() = default;
  StreamEvent(StreamEvent&& other) noexcept { *this = std::move(other); }
  StreamEvent& operator=(StreamEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~StreamEvent();
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Memory of the device, 256-byte aligned. Freeing it waits for the device.
class DeviceMemory {
 public:
  // ResourceExhausted names the bytes needed and free. No bytes: an empty owner.
  static absl::StatusOr<DeviceMemory> Allocate(int64_t bytes);
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory();
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Page-locked host memory, which kernels can read as well.
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t bytes);
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedBuffer();
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace ferry::cuda
