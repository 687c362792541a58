#pragma once

// Host memory for hidden states on their way through a socket, in buffers that are used again and again. The thread that computes
// with `ops` pins a buffer before its first copy to or from the device.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "common/status.h"
#include "kernels/ops.h"
#include "worker/activation_wire.h"

namespace ferry {

// Room for a header and behind it num_rows rows of n_embd floats.
class PinnedRows {
 public:
  // `ops` may be null: nothing is pinned. ResourceExhausted: there is no memory.
  static absl::StatusOr<std::unique_ptr<PinnedRows>> Create(Ops* ops, int64_t n_embd, int64_t num_rows);
  ~PinnedRows();  // while the thread that computes does not use `ops`
  PinnedRows(const PinnedRows&) = delete;
  PinnedRows& operator=(const PinnedRows&) = delete;

  // On the thread that computes. If the device refuses, copies take longer.
  void Pin();
  std::span<std::byte> header() const { return {memory_ + kHeaderAt, kActivationHeaderBytes}; }
  std::span<float> rows() const { return {reinterpret_cast<float*>(memory_ + kRowsAt), num_floats_}; }
  // The header and the first `bytes` behind it, which may be a failure's text.
  std::span<std::byte> frame(size_t bytes) const { return {memory_ + kHeaderAt, kActivationHeaderBytes + bytes}; }

 private:
  static constexpr size_t kRowsAt = 4096;  // rows begin on a page, the header just before them
  static constexpr size_t kHeaderAt = kRowsAt - kActivationHeaderBytes;
  PinnedRows(Ops* ops, std::byte* memory, size_t bytes, size_t num_floats)
      : ops_(ops), memory_(memory), bytes_(bytes), num_floats_(num_floats) {}

  Ops* const ops_;
  std::byte* const memory_;
  const size_t bytes_, num_floats_;
  bool tried_ = false, pinned_ = false;
};

// Buffers of one size, made when they are first needed and then kept. Thread-safe.
class PinnedRowsPool {
 public:
  PinnedRowsPool(Ops* ops, int64_t n_embd, int64_t num_rows) : ops_(ops), n_embd_(n_embd), num_rows_(num_rows) {}

  int64_t num_rows() const { return num_rows_; }  // of each
  absl::StatusOr<std::unique_ptr<PinnedRows>> Take();
  void GiveBack(std::unique_ptr<PinnedRows> rows);

 private:
  Ops* const ops_;
  const int64_t n_embd_, num_rows_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<PinnedRows>> free_;  // guarded by mutex_; the last one given back is the next one taken
};

}  // namespace ferry
