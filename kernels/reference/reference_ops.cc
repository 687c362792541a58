#include "kernels/reference/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/kv_cache_format.h"
#include "kernels/rope.h"

namespace ferry {
namespace {

// Four sums side by side, so that an addition need not wait for the one before it; a plain sum takes four times as
// long.
template <typename A, typename B>
double Dot(const A* a, const B* b, int64_t count) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) {
      sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double SwiGlu(const SwigluParams& params, double gate, double up) {
  const double limit = params.limit, g = std::min(gate, limit), u = std::clamp(up, -limit, limit);
  return (u + 1) * g * Sigmoid(params.alpha * g);
}

// Rotates the pairs (i, i + num_dims / 2) of one head; dimensions beyond num_dims stay.
void Rotate(const std::vector<double>& frequencies, double attention_factor, int64_t position, const float* in, int64_t head_dim,
            float* out) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    const double cos = std::cos(angle) * attention_factor, sin = std::sin(angle) * attention_factor;
    const double a = in[i], b = in[i + half];
    out[i] = static_cast<float>(a * cos - b * sin);
    out[i + half] = static_cast<float>(b * cos + a * sin);
  }
  for (int64_t i = 2 * half; i < head_dim; ++i) out[i] = in[i];
}

}  // namespace

absl::Status ReferenceOps::DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) {
  for (int64_t row = 0; row < x.rows; ++row) {
    const float* in = RowOf(x, row);
    const double mean_square = Dot(in, in, x.cols) / static_cast<double>(x.cols);
    const double factor = 1 / std::sqrt(mean_square + epsilon);
    for (int64_t i = 0; i < x.cols; ++i) RowOf(out, row)[i] = static_cast<float>(in[i] * factor * weight[i]);
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) {
  std::vector<float> weights(weight.layout.cols);
  for (int64_t col = 0; col < weight.layout.rows; ++col) {
    DecodeTiledRow(weight, col, weights.data());
    for (int64_t row = 0; row < in.rows; ++row) {
      float& result = RowOf(out, row)[col];
      double sum = Dot(RowOf(in, row), weights.data(), in.cols);
      if (bias != nullptr) sum += bias[col];
      if (accumulate) sum += result;
      result = static_cast<float>(sum);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, Tensor qkv,
                                          const KvLayer& cache, Tensor q_out) {
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const int64_t dim = cache.head_dim;
  std::vector<float> key(dim);
  for (int64_t row = 0; row < qkv.rows; ++row) {
    const int64_t position = batch.position(first_row + row);
    const std::vector<int32_t>& table = batch.table(first_row + row, cache);
    const float* q = RowOf(qkv, row);
    const float* k = q + q_out.cols;
    const float* v = k + cache.num_kv_heads * dim;
    for (int64_t at = 0; at < q_out.cols; at += dim) {
      Rotate(frequencies, rope.attention_factor, position, q + at, dim, RowOf(q_out, row) + at);
    }
    for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
      const int64_t slot = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), head, position);
      Rotate(frequencies, rope.attention_factor, position, k + head * dim, dim, key.data());
      StoreKey(cache, slot, key.data());
      StoreValue(cache, slot, v + head * dim);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache, int64_t window,
                                       const float* sinks, Tensor out) {
  const int64_t dim = cache.head_dim, num_heads = q.cols / dim, group = num_heads / cache.num_kv_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<float> keys, values;  // of one kv head, the positions a row sees: [count, dim]
  std::vector<double> scores, sum(dim);
  for (int64_t row = 0; row < q.rows; ++row) {
    const int64_t position = batch.position(first_row + row);
    const std::vector<int32_t>& table = batch.table(first_row + row, cache);
    const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0, count = position - first + 1;
    keys.resize(count * dim);
    values.resize(count * dim);
    scores.resize(count);
    for (int64_t kv_head = 0; kv_head < cache.num_kv_heads; ++kv_head) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t slot = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), kv_head, first + i);
        LoadKey(cache, slot, &keys[i * dim]);
        LoadValue(cache, slot, &values[i * dim]);
      }
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* query = RowOf(q, row) + head * dim;
        double largest = sinks != nullptr ? sinks[head] : -std::numeric_limits<double>::infinity();
        for (int64_t i = 0; i < count; ++i) {
          scores[i] = Dot(query, &keys[i * dim], dim) * scale;
          largest = std::max(largest, scores[i]);
        }
        double denominator = sinks != nullptr ? std::exp(sinks[head] - largest) : 0;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t i = 0; i < count; ++i) {
          const double weight = std::exp(scores[i] - largest);
          denominator += weight;
          for (int64_t j = 0; j < dim; ++j) sum[j] += weight * values[i * dim + j];
        }
        float* result = RowOf(out, row) + head * dim;
        for (int64_t j = 0; j < dim; ++j) result[j] = static_cast<float>(sum[j] / denominator);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoRoute(Tensor in, const float* weight, const float* bias, int64_t num_experts, int64_t top_k,
                                   int32_t* experts, float* weights) {
  std::vector<double> logits(num_experts);
  std::vector<int32_t> order(num_experts);
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      logits[expert] = Dot(RowOf(in, row), weight + expert * in.cols, in.cols);
      if (bias != nullptr) logits[expert] += bias[expert];
      // No number is worse than any number, so that a broken row still chooses experts that exist.
      if (std::isnan(logits[expert])) logits[expert] = -std::numeric_limits<double>::infinity();
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(),
                      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    double denominator = 0;
    for (int64_t rank = 0; rank < top_k; ++rank) denominator += std::exp(logits[order[rank]] - logits[order[0]]);
    for (int64_t rank = 0; rank < top_k; ++rank) {
      experts[row * top_k + rank] = order[rank];
      weights[row * top_k + rank] = static_cast<float>(std::exp(logits[order[rank]] - logits[order[0]]) / denominator);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                       const SwigluParams& swiglu, Tensor in, Tensor contributions) {
  const int64_t n_ff = layout.gate.rows, n_embd = layout.down.rows;
  std::vector<float> gate_row(layout.gate.cols), up_row(layout.up.cols), down_row(layout.down.cols);
  std::vector<double> hidden;  // [rows of the group, n_ff]
  for (const ExpertUse& use : uses) {
    const TiledMatrix gate = layout.Gate(use.record), up = layout.Up(use.record), down = layout.Down(use.record);
    const float* gate_bias = layout.GateBias(use.record);
    const float* up_bias = layout.UpBias(use.record);
    const float* down_bias = layout.DownBias(use.record);
    const int32_t* rows = groups.rows + groups.offsets[use.group];
    const int32_t* outs = groups.outs + groups.offsets[use.group];
    hidden.resize(use.num_rows * n_ff);
    for (int64_t i = 0; i < n_ff; ++i) {
      DecodeTiledRow(gate, i, gate_row.data());
      DecodeTiledRow(up, i, up_row.data());
      for (int64_t entry = 0; entry < use.num_rows; ++entry) {
        const float* x = RowOf(in, rows[entry]);
        const double g = Dot(x, gate_row.data(), in.cols) + (gate_bias != nullptr ? gate_bias[i] : 0);
        const double u = Dot(x, up_row.data(), in.cols) + (up_bias != nullptr ? up_bias[i] : 0);
        hidden[entry * n_ff + i] = SwiGlu(swiglu, g, u);
      }
    }
    for (int64_t i = 0; i < n_embd; ++i) {
      DecodeTiledRow(down, i, down_row.data());
      for (int64_t entry = 0; entry < use.num_rows; ++entry) {
        RowOf(contributions, outs[entry])[i] =
            static_cast<float>(Dot(&hidden[entry * n_ff], down_row.data(), n_ff) + (down_bias != nullptr ? down_bias[i] : 0));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoCombine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) {
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t i = 0; i < x.cols; ++i) {
      double sum = RowOf(x, row)[i];
      for (int64_t rank = 0; rank < top_k; ++rank) {
        sum += static_cast<double>(weights[row * top_k + rank]) * RowOf(contributions, row * top_k + rank)[i];
      }
      RowOf(x, row)[i] = static_cast<float>(sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace ferry
