#pragma once

// Downloads the rows of a layer's input that the coordinator computes on, as the floats that the expert link carries.

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
  // Up to this many rows are downloaded ahead, all of them: a second wait for the device costs more time than the bytes do.
  static constexpr int64_t kMaxRowsAhead = 8;

  // ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<HostRows>> Create(Ops* ops, int64_t n_embd);
  ~HostRows();
  HostRows(const HostRows&) = delete;
  HostRows& operator=(const HostRows&) = delete;
  // Device memory that Create allocates.
  static int64_t BytesOf(const Ops& ops, int64_t n_embd);

  // Begins a layer with input `in` [rows, n_embd]. When `wanted` and the rows are at most kMaxRowsAhead, queues their download;
  // they have arrived once the caller's next Ops::Download returns.
  absl::Status Begin(Tensor in, bool wanted);
  // Downloads `rows` of the same `in`, increasing, unless all are here ahead. Waits for the device.
  absl::Status Fetch(Tensor in, std::span<const int32_t> rows);
  // Writes `rows` of the same `in` to `out` [rows.size(), n_embd] without keeping them. Waits for the device, unless they are
  // here ahead. The device writes `out` itself if it is pinned (Ops::DownloadRows).
  absl::Status Download(Tensor in, std::span<const int32_t> rows, std::span<float> out);
  // Writes rows that are here, in any order, to `out` [rows.size(), n_embd].
  void Read(std::span<const int32_t> rows, std::span<float> out) const;

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
  std::unique_ptr<std::byte, Free> ahead_;  // act [kMaxRowsAhead, n_embd], pinned where the backend can
  bool pinned_ = false;
  int64_t rows_ahead_ = 0;                 // rows of the layer's input in ahead_
  DType dtype_ = DType::kF32;              // act
  std::vector<std::byte> fetched_;         // act [rows that were fetched, n_embd]
  std::vector<int32_t> place_in_fetched_;  // of a row of the layer's input
};

}  // namespace ferry
