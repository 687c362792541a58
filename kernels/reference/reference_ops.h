#pragma once

// The operations as their definitions read: plain loops in double, rounded to F32 only where an operation hands on its
// result (and to the KV cache's type where it is stored). What every other backend is held against; slow on purpose.

#include <cmath>
#include <string>
#include <vector>

#include "common/half.h"
#include "kernels/host_ops.h"

namespace ferry {

inline double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class ReferenceOps final : public HostOps {
 public:
  // kBf16 rounds what products read (activations, weights, experts' inner rows and contributions) as the CUDA backend does. It
  // tells a model that is sensitive to rounding from a fault in fast kernels.
  enum class Rounding { kNone, kBf16 };
  explicit ReferenceOps(Rounding rounding = Rounding::kNone) : rounds_(rounding == Rounding::kBf16) {}

  std::string name() const override { return rounds_ ? "reference (BF16 activations)" : "reference (double precision)"; }

 protected:
  absl::Status DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) override;
  absl::Status DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) override;
  absl::Status DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                              Tensor qkv, const KvLayer& cache, Tensor q_out) override;
  absl::Status DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                           const AttentionParams& params, Tensor out) override;
  absl::Status DoStoreLatent(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                             Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) override;
  absl::Status DoGatedDelta(const HostBatch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                            const DeltaWeights& weights, const DeltaStates& states, Tensor out) override;
  absl::Status DoMultiplyBySigmoid(Tensor gate, Tensor x) override;
  absl::Status DoGlu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) override;
  absl::Status DoRoute(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                       float* weights) override;
  absl::Status DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                           const GluParams& glu, Tensor in, Tensor contributions) override;
  absl::Status DoCombine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) override;
  bool StoresKvInF32() const override { return true; }

 private:
  float Rounded(float value) const { return rounds_ ? BFloat16ToFloat(FloatToBFloat16(value)) : value; }
  std::vector<float> RoundedRow(const float* row, int64_t cols) const;
  void DecodeRow(const TiledMatrix& matrix, int64_t row, std::vector<float>& out) const;

  const bool rounds_;
};

}  // namespace ferry
