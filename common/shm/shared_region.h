#pragma once

// Memory that two processes read and write: a sealed memfd, all of it mapped. Its size is fixed, so neither process can take
// pages away from under the other. What one of them writes there is not to be trusted by the other.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "common/shm/memfd.h"
#include "common/status.h"

namespace ferry {

// Move-only. The destructor unmaps the memory and closes the descriptor.
class SharedRegion {
 public:
  // One process makes at least `bytes` zeros and passes fd() to the other. ResourceExhausted: the machine has not that much
  // memory.
  static absl::StatusOr<SharedRegion> Create(const std::string& name, int64_t bytes);
  // The other process maps them and takes the descriptor. InvalidArgument: it holds fewer than `bytes`, holds far more, or may
  // shrink.
  static absl::StatusOr<SharedRegion> Map(int fd, int64_t bytes);

  SharedRegion(SharedRegion&& other) noexcept;
  SharedRegion& operator=(SharedRegion&& other) = delete;
  ~SharedRegion();

  std::byte* data() const { return data_; }
  int fd() const { return memfd_.fd.get(); }

 private:
  SharedRegion(Memfd memfd, std::byte* data) : memfd_(std::move(memfd)), data_(data) {}

  Memfd memfd_;
  std::byte* data_;  // memfd_.bytes are mapped; null once moved from
};

}  // namespace ferry
