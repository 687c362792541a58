#pragma once

// Routes the rows of a step to the experts of one layer and downloads the result: how many rows each expert has, and, when the
// host computes a share, which rows.
//
//   Queue -> Read -> ReadEntries (only for a share of the host)
//
// One thread. Buffers are sized at Create for steps of max_rows rows.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/host_chunks.h"

namespace ferry {

class ExpertRouting {
 public:
  // ResourceExhausted: the device is full. `ops` outlives this.
  static absl::StatusOr<std::unique_ptr<ExpertRouting>> Create(Ops* ops, const RouterConfig& config, int64_t max_rows);
  // Device memory that Create allocates.
  static int64_t BytesOf(const RouterConfig& config, int64_t max_rows);

  // Queues the routing of `in` (act [rows, n_embd]) on the device.
  absl::Status Queue(const RouterWeights& router, Tensor in);
  // Waits for the routing and downloads the number of rows of each expert. Internal: the device's numbers are inconsistent.
  absl::Status Read(int64_t layer);
  // Returns which rows go to which expert, and where their contributions go; valid until the next Queue. Internal: the device's
  // numbers are out of range.
  absl::StatusOr<HostGroups> ReadEntries(int64_t layer);

  int64_t rows() const { return rows_; }
  const ExpertGroups& groups() const { return groups_; }         // in device memory
  const float* weights() const { return weights_.as<float>(); }  // F32 [rows, top_k], in device memory
  std::span<const int32_t> tokens() const { return tokens_; }    // [num_experts], rows of each; after Read

 private:
  ExpertRouting(Ops* ops, const RouterConfig& config) : ops_(*ops), config_(config) {}
  bool entries_come_along() const;

  Ops& ops_;
  const RouterConfig config_;
  DeviceBuffer chosen_;   // i32 [max_rows, top_k]
  DeviceBuffer weights_;  // F32 [max_rows, top_k]
  DeviceBuffer memory_;   // i32, of groups_: offsets, entry rows, entry outs

  int64_t rows_ = 0;
  ExpertGroups groups_;
  std::vector<int32_t> downloaded_;  // offsets; after ReadEntries rows and outs too
  std::vector<int32_t> tokens_;
};

}  // namespace ferry
