#pragma once

// What the gated delta net of the CPU backend does beside its recurrence (CpuKernels::delta): a row before it, and a row after.
// Any thread; a row's numbers depend on that row's inputs alone.

#include <cstdint>
#include <vector>

#include "common/model/model_config.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/gated_delta.h"

namespace ferry {

class DeltaRows {
 public:
  // `kernels`, `net` and `weights` outlive this.
  DeltaRows(const CpuKernels& kernels, const AttentionConfig& net, const DeltaWeights& weights);

  // taps [conv_taps]: rows [conv_channels] of the token and those before it, oldest first. out [conv_channels]: queries and keys
  // with their norms, and values.
  void Before(const float* const* taps, float* out) const;
  // Of each value head what S is multiplied with, and the share of the difference that is added to it. All [num_heads].
  void Gates(const float* alpha, const float* beta, float* decay, float* share) const;
  // The norm of each head and the gate, in place: x, gate [num_heads * head_dim].
  void After(const float* gate, float* x) const;

 private:
  const CpuKernels& kernels_;
  const AttentionConfig& net_;
  const DeltaWeights& weights_;
  const std::vector<float> zeros_;            // [conv_channels]
  std::vector<float> query_norm_, key_norm_;  // [head_dim], of an RMSNorm that divides by the root of the sum
};

}  // namespace ferry
