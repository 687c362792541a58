#pragma once

// The operations as their definitions read: plain loops in double, rounded to F32 only where an operation hands on its
// result (and to the KV cache's type where it is stored). What every other backend is held against; slow on purpose.

#include <string>

#include "kernels/host_ops.h"

namespace ferry {

class ReferenceOps final : public HostOps {
 public:
  std::string name() const override { return "reference (double precision)"; }

 protected:
  absl::Status DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) override;
  absl::Status DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) override;
  absl::Status DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, Tensor qkv, const KvLayer& cache,
                              Tensor q_out) override;
  absl::Status DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache, int64_t window,
                           const float* sinks, Tensor out) override;
  absl::Status DoRoute(Tensor in, const float* weight, const float* bias, int64_t num_experts, int64_t top_k, int32_t* experts,
                       float* weights) override;
  absl::Status DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                           const SwigluParams& swiglu, Tensor in, Tensor contributions) override;
  absl::Status DoCombine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) override;
  bool StoresKvInF32() const override { return true; }
};

}  // namespace ferry
