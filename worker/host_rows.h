#pragma once

// The rows of a layer's input that go to the host for its share, as the floats that the expert link carries.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

class HostRows {
 public:
  // Of up to this many rows all are asked for ahead: fewer bytes than a wait for the device costs time.
  static constexpr int64_t kMaxRowsAhead = 8;

  // ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<HostRows>> Create(Ops* ops, int64_t n_embd);
  ~HostRows();
  HostRows(const HostRows&) = delete;
  HostRows& operator=(const HostRows&) = delete;
  // Device memory that Create allocates.
  static int64_t BytesOf(const Ops& ops, int64_t n_embd);

  // `in` [rows, n_embd] is of a new layer. When `wanted` and they are few, its rows are queued for the host: they are there with
  // whatever is downloaded next.
  absl::Status Begin(Tensor in, bool wanted);
  // The named rows of the same `in`, increasing, into `out` [rows.size(), n_embd].
  absl::Status Read(Tensor in, std::span<const int32_t> rows, std::span<float> out);

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  HostRows(Ops* ops, int64_t n_embd);
  std::span<std::byte> ahead() const { return {ahead_.get(), ahead_bytes_}; }

  Ops& ops_;
  const int64_t n_embd_;
  DeviceBuffer gathered_;  // act [kGatherRows, n_embd]
  size_t ahead_bytes_ = 0;
  std::unique_ptr<std::byte, Free> ahead_;  // act [kMaxRowsAhead, n_embd], pinned where that works
  bool pinned_ = false;
  int64_t rows_ahead_ = 0;           // of the layer's input, in ahead_
  std::vector<std::byte> raw_rows_;  // of others, where act is not F32
};

}  // namespace ferry
