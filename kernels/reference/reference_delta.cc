// The gated delta net, as kernels/gated_delta.h defines it.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kv_batch.h"
#include "kernels/reference/reference_ops.h"

namespace ferry {
namespace {

double Silu(double x) { return x * Sigmoid(x); }
double Softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// x / sqrt(sum x^2 + epsilon) * scale, in place.
void NormaliseHead(double* x, int64_t count, double scale) {
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) squares += x[i] * x[i];
  const double factor = scale / std::sqrt(squares + kDeltaEpsilon);
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

// The convolution of a row, which then joins the rows that are kept. out [conv_channels].
void Convolve(const AttentionConfig& net, const float* weights, const float* row, float* kept, std::vector<double>& out) {
  const int64_t channels = net.conv_channels(), before = net.conv_taps - 1;
  for (int64_t c = 0; c < channels; ++c) {
    double sum = static_cast<double>(weights[before * channels + c]) * row[c];
    for (int64_t tap = 0; tap < before; ++tap) {
      sum += static_cast<double>(weights[tap * channels + c]) * kept[tap * channels + c];
    }
    out[c] = Silu(sum);
  }
  std::copy(kept + channels, kept + before * channels, kept);
  std::copy_n(row, channels, kept + (before - 1) * channels);
}

// S = decay S; S += k (beta (v - S' k))'; out = S' q.
void Advance(int64_t dim, const double* q, const double* k, const double* v, double decay, double beta, float* state,
             double* out) {
  for (int64_t column = 0; column < dim; ++column) {
    float* const s = state + column / kDeltaColumns * dim * kDeltaColumns + column % kDeltaColumns;
    double removed = 0;
    for (int64_t i = 0; i < dim; ++i) removed += k[i] * decay * s[i * kDeltaColumns];
    const double error = beta * (v[column] - removed);
    double sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      s[i * kDeltaColumns] = static_cast<float>(decay * s[i * kDeltaColumns] + k[i] * error);
      sum += q[i] * s[i * kDeltaColumns];
    }
    out[column] = sum;
  }
}

}  // namespace

absl::Status ReferenceOps::DoGatedDelta(const HostBatch& batch, int64_t first_row, const AttentionConfig& net,
                                        const DeltaInputs& inputs, const DeltaWeights& weights, const DeltaStates& states,
                                        Tensor out) {
  const int64_t dim = net.head_dim, channels = net.conv_channels(), numbers = DeltaStateNumbers(net);
  std::vector<double> mixed(channels), summed(dim);
  for (int64_t row = 0; row < out.rows; ++row) {
    float* const kept = states.data + batch.sequence(first_row + row).slot * numbers;
    if (batch.position(first_row + row) == 0) std::fill_n(kept, numbers, 0.0f);
    Convolve(net, weights.conv, RowOf(inputs.mixed, row), kept, mixed);
    double* const queries = mixed.data();
    double* const keys = queries + net.kv_size();
    const double* const values = keys + net.kv_size();
    for (int64_t head = 0; head < net.num_kv_heads; ++head) {
      NormaliseHead(queries + head * dim, dim, 1 / std::sqrt(static_cast<double>(dim)));
      NormaliseHead(keys + head * dim, dim, 1);
    }
    float* const state = kept + (net.conv_taps - 1) * channels;
    for (int64_t head = 0; head < net.num_heads; ++head) {
      const int64_t key_head = net.key_head(head);
      const double step = Softplus(static_cast<double>(RowOf(inputs.alpha, row)[head]) + weights.time_bias[head]);
      Advance(dim, queries + key_head * dim, keys + key_head * dim, values + head * dim, std::exp(weights.decay[head] * step),
              Sigmoid(RowOf(inputs.beta, row)[head]), state + head * dim * dim, summed.data());
      double squares = 0;
      for (const double value : summed) squares += value * value;
      const double factor = 1 / std::sqrt(squares / static_cast<double>(dim) + weights.epsilon);
      const float* const gate = RowOf(inputs.gate, row) + head * dim;
      float* const result = RowOf(out, row) + head * dim;
      for (int64_t i = 0; i < dim; ++i) result[i] = static_cast<float>(summed[i] * factor * weights.norm[i] * Silu(gate[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoMultiplyBySigmoid(Tensor gate, Tensor x) {
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t i = 0; i < x.cols; ++i) {
      const float of = RowOf(gate, row)[gate.cols == 1 ? 0 : i];
      RowOf(x, row)[i] = static_cast<float>(RowOf(x, row)[i] * Sigmoid(of));
    }
  }
  return absl::OkStatus();
}

}  // namespace ferry
