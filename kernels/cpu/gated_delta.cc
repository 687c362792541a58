#include "kernels/cpu/gated_delta.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ferry {
namespace {

constexpr float kNoLimit = std::numeric_limits<float>::infinity();

}  // namespace

DeltaRows::DeltaRows(const CpuKernels& kernels, const AttentionConfig& net, const DeltaWeights& weights)
    : kernels_(kernels), net_(net), weights_(weights), zeros_(net.conv_channels(), 0.0f) {
  const float root = 1 / std::sqrt(static_cast<float>(net.head_dim));
  query_norm_.assign(net.head_dim, root * root);
  key_norm_.assign(net.head_dim, root);
}

void DeltaRows::Before(const float* const* taps, float* out) const {
  const int64_t channels = net_.conv_channels(), dim = net_.head_dim;
  std::fill_n(out, channels, 0.0f);
  for (int64_t tap = 0; tap < net_.conv_taps; ++tap) {
    const float* const weight = weights_.conv + tap * channels;
    const float* const row = taps[tap];
    for (int64_t c = 0; c < channels; ++c) out[c] += weight[c] * row[c];
  }
  // (0 + 1) * y * sigmoid(y)
  kernels_.glu(out, zeros_.data(), channels, {.alpha = 1, .limit = kNoLimit, .up_offset = 1}, out);
  const double epsilon = kDeltaEpsilon / static_cast<double>(dim);
  for (int64_t head = 0; head < 2 * net_.num_kv_heads; ++head) {
    const std::vector<float>& norm = head < net_.num_kv_heads ? query_norm_ : key_norm_;
    kernels_.rms_norm_row(out + head * dim, norm.data(), dim, epsilon, out + head * dim);
  }
}

void DeltaRows::Gates(const float* alpha, const float* beta, float* decay, float* share) const {
  for (int64_t head = 0; head < net_.num_heads; ++head) {
    const double x = static_cast<double>(alpha[head]) + weights_.time_bias[head];
    const double softplus = std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    decay[head] = static_cast<float>(std::exp(weights_.decay[head] * softplus));
    share[head] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(beta[head]))));
  }
}

void DeltaRows::After(const float* gate, float* x) const {
  const int64_t dim = net_.head_dim;
  for (int64_t head = 0; head < net_.num_heads; ++head) {
    kernels_.rms_norm_row(x + head * dim, weights_.norm, dim, weights_.epsilon, x + head * dim);
  }
  kernels_.glu(gate, x, net_.q_size(), {.alpha = 1, .limit = kNoLimit, .up_offset = 0}, x);
}

}  // namespace ferry
