#pragma once

// Computes experts from an arena: the share of every layer that this host has. One computation at a time uses all threads. The
// machine's memory rate bounds it, so two at once would only share that rate.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/expert_computer.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/experts/rate_correction.h"
#include "coordinator/trace_writer.h"
#include "kernels/ops.h"

namespace ferry {

class ExpertEngine final : public ExpertComputer {
 public:
  // `ops` is a host backend. `trace`, unless null, gets a span for every computation. All outlive the engine.
  ExpertEngine(const ExpertStore* store, Ops* ops, const GluParams& glu, int64_t n_embd, TraceWriter* trace = nullptr);

  absl::Status Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) override;
  // The same for a share of a larger request: entry i goes to row outs[i] of `contributions`. Each of outs is a row of it.
  absl::Status ComputeShare(const ExpertRequest& request, std::span<const int32_t> outs, std::span<float> rows,
                            std::span<float> contributions);

  // What this engine was measured at: from here on steps correct it. Zeros: nothing is corrected.
  void SetRates(const ExpertRates& rates);
  void BeginStep(int64_t num_rows) override;
  double Slowdown(int64_t num_rows) const override;
  StepCorrections::Factors corrections() const;

  int64_t n_embd() const { return n_embd_; }
  const std::string name() const { return ops_.name(); }

 private:
  const ExpertStore& store_;
  Ops& ops_;
  const GluParams glu_;
  const int64_t n_embd_;
  TraceWriter* const trace_;
  std::mutex mutex_;                // of computations
  mutable std::mutex rates_mutex_;  // of what follows
  ExpertRates rates_;
  StepCorrections corrections_;
};

}  // namespace ferry
