#pragma once

// A batch as CUDA kernels read it: token ids, positions and block tables in one piece of device memory.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/delta_net.h"
#include "kernels/cuda/rope_store.h"
#include "kernels/ops.h"

namespace ferry::cuda {

// Device memory of batches that are gone. All uploads and all uses are on one stream, so memory may be used again as
// soon as its batch is dropped. Thread-safe, since a batch may be dropped anywhere.
class BatchMemoryPool {
 public:
  absl::StatusOr<DeviceMemory> Take(int64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto fits = std::find_if(free_.begin(), free_.end(), [&](const DeviceMemory& m) { return m.bytes() >= bytes; });
      if (fits != free_.end()) {
        DeviceMemory memory = std::move(*fits);
        free_.erase(fits);
        return memory;
      }
    }
    int64_t rounded = 64 << 10;
    while (rounded < bytes) rounded *= 2;
    return DeviceMemory::Allocate(rounded);
  }
  void Give(DeviceMemory memory) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(memory));
  }

 private:
  std::mutex mutex_;
  std::vector<DeviceMemory> free_;  // guarded by mutex_
};

// Arrays of one batch in one piece of device memory: [name][rows] ints, a DeviceSequence each, then the tables one after the
// other.
class CudaBatch final : public DeviceBatch {
 public:
  struct Tables {
    std::vector<int64_t> starts;            // of each sequence, in table_data
    int64_t row_starts = 0, row_sizes = 0;  // in ints, of the per-row arrays
  };
  CudaBatch(Batch host, std::shared_ptr<BatchMemoryPool> pool) : DeviceBatch(std::move(host)), pool_(std::move(pool)) {
    const int64_t rows = host_.num_rows();
    token_ids_ = Add(host_.token_ids.size());
    positions_ = Add(rows);
    row_sequences_ = Add(rows);
    sequences_ = Add(host_.sequences.size() * sizeof(DeviceSequence) / sizeof(int32_t));
    for (Tables* tables : {&full_, &ring_}) {
      tables->row_starts = Add(rows);
      tables->row_sizes = Add(rows);
    }
    std::copy(host_.token_ids.begin(), host_.token_ids.end(), ints_.begin() + token_ids_);
    for (size_t s = 0; s < host_.sequences.size(); ++s) {
      const BatchSequence& sequence = host_.sequences[s];
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        ints_[positions_ + sequence.first_row + i] = static_cast<int32_t>(sequence.first_position + i);
        ints_[row_sequences_ + sequence.first_row + i] = static_cast<int32_t>(s);
      }
      const DeviceSequence rows_of = {static_cast<int32_t>(sequence.first_row), static_cast<int32_t>(sequence.num_rows),
                                      static_cast<int32_t>(sequence.first_position), sequence.slot};
      std::memcpy(&ints_[sequences_ + static_cast<int64_t>(s * sizeof(rows_of) / sizeof(int32_t))], &rows_of, sizeof(rows_of));
      AddTable(sequence, sequence.blocks, &full_);
      AddTable(sequence, sequence.ring_blocks, &ring_);
    }
  }
  ~CudaBatch() override {
    if (memory_.data() != nullptr) pool_->Give(std::move(memory_));
  }

  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(ints_)); }
  void SetMemory(DeviceMemory memory) {
    memory_ = std::move(memory);
    ints_ = {};
  }

  const int32_t* token_ids(int64_t row) const { return device() + token_ids_ + row; }
  DevicePlaces places(int64_t row, bool ring) const {
    const Tables& tables = ring ? ring_ : full_;
    return {device() + positions_ + row, device() + tables.row_starts + row, device() + tables.row_sizes + row, device()};
  }
  const int32_t* row_sequences(int64_t row) const { return device() + row_sequences_ + row; }
  const DeviceSequence* sequences() const { return reinterpret_cast<const DeviceSequence*>(device() + sequences_); }
  const int32_t* table(int64_t sequence, bool ring) const { return device() + (ring ? ring_ : full_).starts[sequence]; }

 private:
  int32_t* device() const { return reinterpret_cast<int32_t*>(memory_.data()); }
  int64_t Add(int64_t count) {
    const int64_t first = static_cast<int64_t>(ints_.size());
    ints_.resize(first + count);
    return first;
  }
  void AddTable(const BatchSequence& sequence, const std::vector<int32_t>& table, Tables* tables) {
    const int64_t start = Add(static_cast<int64_t>(table.size()));
    std::copy(table.begin(), table.end(), ints_.begin() + start);
    tables->starts.push_back(start);
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      ints_[tables->row_starts + sequence.first_row + i] = static_cast<int32_t>(start);
      ints_[tables->row_sizes + sequence.first_row + i] = static_cast<int32_t>(table.size());
    }
  }

  std::shared_ptr<BatchMemoryPool> pool_;
  std::vector<int32_t> ints_;  // until they are on the device
  DeviceMemory memory_;
  int64_t token_ids_ = 0, positions_ = 0, row_sequences_ = 0, sequences_ = 0;
  Tables full_, ring_;
};

}  // namespace ferry::cuda
