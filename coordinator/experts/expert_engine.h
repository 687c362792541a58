#pragma once

// Computes experts where they lie, for all workers: the host's half of every layer. One computation at a time uses all threads,
// since its measure is the machine's memory rate and two at once would only share it.

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
  // `ops` is a host backend. `trace` gets a span for every computation, unless it is null. All must outlive this.
  ExpertEngine(const ExpertStore* store, Ops* ops, const SwigluParams& swiglu, int64_t n_embd, TraceWriter* trace = nullptr);

  // contributions[i] = expert of entry i applied to rows[entry_rows[i]]. Everything of `request` is checked first against the
  // store and the spans: InvalidArgument names the field. Thread-safe.
  //   rows           [request.num_rows, n_embd]            F32
  //   contributions  [request.entry_rows.size(), n_embd]   F32
  absl::Status Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions);

  int64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }
  const std::string name() const { return ops_.name(); }

 private:
  const ExpertStore& store_;
  Ops& ops_;
  const SwigluParams swiglu_;
  const int64_t n_embd_;
  TraceWriter* const trace_;
  std::mutex mutex_;
  std::atomic<int64_t> bytes_read_{0};
};

}  // namespace ferry
