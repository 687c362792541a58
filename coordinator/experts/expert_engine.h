#pragma once

// Computes experts from the arena, for all workers: the host's share of every layer. One computation at a time uses all threads.
// The machine's memory rate bounds it, so two at once would only share that rate.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/trace_writer.h"
#include "kernels/ops.h"

namespace ferry {

class ExpertEngine {
 public:
  // `ops` is a host backend. `trace`, unless null, gets a span for every computation. All outlive the engine.
  ExpertEngine(const ExpertStore* store, Ops* ops, const GluParams& glu, int64_t n_embd, TraceWriter* trace = nullptr);

  // contributions[i] = expert of entry i applied to rows[entry_rows[i]]. First checks all of `request` against the store and the
  // spans: InvalidArgument names the field. Thread-safe.
  //   rows           [request.num_rows, n_embd]            F32
  //   contributions  [request.entry_rows.size(), n_embd]   F32
  absl::Status Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions);

  int64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }
  const std::string name() const { return ops_.name(); }

 private:
  const ExpertStore& store_;
  Ops& ops_;
  const GluParams glu_;
  const int64_t n_embd_;
  TraceWriter* const trace_;
  std::mutex mutex_;
  std::atomic<int64_t> bytes_read_{0};
};

}  // namespace ferry
