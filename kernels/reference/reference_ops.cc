#include "kernels/reference/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

double GatedLinear(const GluParams& params, double gate, double up) {
  const double limit = params.limit, g = std::min(gate, limit), u = std::clamp(up, -limit, limit);
  return (u + params.up_offset) * g * Sigmoid(params.alpha * g);
}

// out = x / sqrt(mean(x^2) + epsilon) * weight.
void Normalise(const float* x, const float* weight, int64_t cols, double epsilon, float* out) {
  const double mean_square = Dot(x, x, cols) / static_cast<double>(cols);
  const double factor = 1 / std::sqrt(mean_square + epsilon);
  for (int64_t i = 0; i < cols; ++i) out[i] = static_cast<float>(x[i] * factor * weight[i]);
}

// Rotates the first dimensions of one head by the position; those behind them stay. In place where in is out.
void Rotate(const RopeConfig& rope, const std::vector<double>& frequencies, int64_t position, const float* in, int64_t head_dim,
            float* out) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    const double cos = std::cos(angle) * rope.attention_factor, sin = std::sin(angle) * rope.attention_factor;
    const int64_t first = rope.neighbours ? 2 * i : i, second = rope.neighbours ? 2 * i + 1 : i + half;
    const double a = in[first], b = in[second];
    out[first] = static_cast<float>(a * cos - b * sin);
    out[second] = static_cast<float>(b * cos + a * sin);
  }
  for (int64_t i = 2 * half; i < head_dim; ++i) out[i] = in[i];
}

// Worth of each group of neighbouring experts: the sum of its best.
std::vector<double> GroupWorths(const std::vector<double>& choice, const RouterConfig& config) {
  const int64_t size = config.num_experts / config.num_groups;
  std::vector<double> worths;
  for (int64_t group = 0; group < config.num_groups; ++group) {
    std::vector<double> members(choice.begin() + group * size, choice.begin() + (group + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    worths.push_back(std::accumulate(members.begin(), members.begin() + std::min(size, config.group_best), 0.0));
  }
  return worths;
}

// The indices of the `count` largest, best first, ties to the lower one.
std::vector<int32_t> Largest(const std::vector<double>& values, int64_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int32_t a, int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  order.resize(count);
  return order;
}

}  // namespace

std::vector<float> ReferenceOps::RoundedRow(const float* row, int64_t cols) const {
  std::vector<float> rounded(row, row + cols);
  for (float& value : rounded) value = Rounded(value);
  return rounded;
}
void ReferenceOps::DecodeRow(const TiledMatrix& matrix, int64_t row, std::vector<float>& out) const {
  DecodeTiledRow(matrix, row, out.data());
  for (float& value : out) value = Rounded(value);
}

absl::Status ReferenceOps::DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) {
  for (int64_t row = 0; row < x.rows; ++row) Normalise(RowOf(x, row), weight, x.cols, epsilon, RowOf(out, row));
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) {
  std::vector<float> weights(weight.layout.cols);
  std::vector<std::vector<float>> rows;
  for (int64_t row = 0; row < in.rows; ++row) rows.push_back(RoundedRow(RowOf(in, row), in.cols));
  for (int64_t col = 0; col < weight.layout.rows; ++col) {
    DecodeRow(weight, col, weights);
    for (int64_t row = 0; row < in.rows; ++row) {
      float& result = RowOf(out, row)[col];
      double sum = Dot(rows[row].data(), weights.data(), in.cols);
      if (bias != nullptr) sum += bias[col];
      if (accumulate) sum += result;
      result = static_cast<float>(sum);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope,
                                          const HeadNorms& norms, Tensor qkv, const KvLayer& cache, Tensor q_out) {
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const int64_t dim = cache.head_dim;
  std::vector<float> head_in(dim), key(dim);
  const auto normed = [&](const float* head, const float* weight) {
    if (weight == nullptr) return head;
    Normalise(head, weight, dim, norms.epsilon, head_in.data());
    return static_cast<const float*>(head_in.data());
  };
  for (int64_t row = 0; row < qkv.rows; ++row) {
    const int64_t position = batch.position(first_row + row);
    const std::vector<int32_t>& table = batch.table(first_row + row, cache);
    const float* q = RowOf(qkv, row);
    const float* k = q + q_out.cols;
    const float* v = k + cache.num_kv_heads * dim;
    for (int64_t at = 0; at < q_out.cols; at += dim) {
      Rotate(rope, frequencies, position, normed(q + at, norms.query), dim, RowOf(q_out, row) + at);
    }
    for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
      const int64_t slot = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), head, position);
      Rotate(rope, frequencies, position, normed(k + head * dim, norms.key), dim, key.data());
      StoreKey(cache, slot, key.data());
      StoreValue(cache, slot, v + head * dim);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                                       const AttentionParams& params, Tensor out) {
  const int64_t dim = cache.head_dim, num_heads = q.cols / dim, group = num_heads / cache.num_kv_heads;
  const int64_t window = params.window;
  const float* const sinks = params.sinks;
  const bool latent = cache.latent_values > 0;
  const int64_t out_dim = latent ? cache.latent_values : dim;
  std::vector<float> keys, values;  // of one kv head, the positions a row sees: [count, dim]
  std::vector<double> scores, sum(out_dim);
  for (int64_t row = 0; row < q.rows; ++row) {
    const int64_t position = batch.position(first_row + row);
    const std::vector<int32_t>& table = batch.table(first_row + row, cache);
    const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0, count = position - first + 1;
    keys.resize(count * dim);
    values.resize(count * dim);
    scores.resize(count);
    const std::vector<float>& weighted = latent ? keys : values;
    for (int64_t kv_head = 0; kv_head < cache.num_kv_heads; ++kv_head) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t slot = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), kv_head, first + i);
        LoadKey(cache, slot, &keys[i * dim]);
        if (!latent) LoadValue(cache, slot, &values[i * dim]);
      }
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const std::vector<float> query = RoundedRow(RowOf(q, row) + head * dim, dim);
        double largest = sinks != nullptr ? sinks[head] : -std::numeric_limits<double>::infinity();
        for (int64_t i = 0; i < count; ++i) {
          scores[i] = Dot(query.data(), &keys[i * dim], dim) * params.scale;
          largest = std::max(largest, scores[i]);
        }
        double denominator = sinks != nullptr ? std::exp(sinks[head] - largest) : 0;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t i = 0; i < count; ++i) {
          const double weight = std::exp(scores[i] - largest);
          denominator += weight;
          for (int64_t j = 0; j < out_dim; ++j) sum[j] += weight * weighted[i * dim + j];
        }
        float* result = RowOf(out, row) + head * out_dim;
        for (int64_t j = 0; j < out_dim; ++j) result[j] = static_cast<float>(sum[j] / denominator);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoStoreLatent(const HostBatch& batch, int64_t first_row, const RopeConfig& rope,
                                         const LatentNorm& norm, Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) {
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const int64_t dim = cache.head_dim, rank = cache.latent_values, rotated = rope.num_dims;
  const int64_t num_heads = q_out.cols / dim, q_dim = q.cols / num_heads;
  std::vector<float> key(dim);
  for (int64_t row = 0; row < q.rows; ++row) {
    const int64_t position = batch.position(first_row + row);
    const std::vector<int32_t>& table = batch.table(first_row + row, cache);
    for (int64_t head = 0; head < num_heads; ++head) {
      Rotate(rope, frequencies, position, RowOf(q, row) + (head + 1) * q_dim - rotated, rotated,
             RowOf(q_out, row) + head * dim + rank);
    }
    Normalise(RowOf(latent, row), norm.weight, rank, norm.epsilon, key.data());
    Rotate(rope, frequencies, position, RowOf(latent, row) + rank, rotated, key.data() + rank);
    StoreKey(cache, KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), 0, position), key.data());
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoGlu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) {
  for (int64_t row = 0; row < gate.rows; ++row) {
    for (int64_t i = 0; i < gate.cols; ++i) {
      RowOf(out, row)[i] = static_cast<float>(GatedLinear(glu, RowOf(gate, row)[i], RowOf(up, row)[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoRoute(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                                   float* weights) {
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  const int64_t num_experts = config.num_experts, top_k = config.top_k;
  const bool softmax = config.score == RouterScore::kSoftmax;
  std::vector<double> logits(num_experts), scores(num_experts), choice(num_experts);
  for (int64_t row = 0; row < in.rows; ++row) {
    const std::vector<float> input = RoundedRow(RowOf(in, row), in.cols);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      logits[expert] = Dot(input.data(), router.weight + expert * in.cols, in.cols);
      if (router.bias != nullptr) logits[expert] += router.bias[expert];
      // No number is worse than any number, so that a broken row still chooses experts that exist.
      if (std::isnan(logits[expert])) logits[expert] = kNothing;
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - largest);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      scores[expert] = softmax ? std::exp(logits[expert] - largest) / sum : Sigmoid(logits[expert]);
      // Logits have the order of their softmax, without its rounding.
      const bool by_logit = softmax && router.selection_bias == nullptr && (config.num_groups == 1 || config.group_best == 1);
      choice[expert] = by_logit ? logits[expert] : scores[expert];
      if (router.selection_bias != nullptr) choice[expert] += router.selection_bias[expert];
    }
    if (config.groups_used < config.num_groups) {
      const std::vector<int32_t> used = Largest(GroupWorths(choice, config), config.groups_used);
      const int64_t size = num_experts / config.num_groups;
      for (int64_t expert = 0; expert < num_experts; ++expert) {
        if (std::find(used.begin(), used.end(), expert / size) == used.end()) choice[expert] = kNothing;
      }
    }
    const std::vector<int32_t> chosen = Largest(choice, top_k);
    // Of a softmax that is renormalised only the chosen matter, and where all scores vanish the best ones' ratios remain.
    const bool of_chosen = softmax && config.normalise;
    double denominator = 0;
    std::vector<double> parts;
    for (const int32_t expert : chosen) {
      parts.push_back(of_chosen ? std::exp(logits[expert] - logits[chosen[0]]) : scores[expert]);
      denominator += parts.back();
    }
    for (int64_t rank = 0; rank < top_k; ++rank) {
      experts[row * top_k + rank] = chosen[rank];
      weights[row * top_k + rank] =
          static_cast<float>((config.normalise ? parts[rank] / denominator : parts[rank]) * config.weight_scale);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                       const GluParams& glu, Tensor in, Tensor contributions) {
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
    std::vector<std::vector<float>> inputs;
    for (int64_t entry = 0; entry < use.num_rows; ++entry) inputs.push_back(RoundedRow(RowOf(in, rows[entry]), in.cols));
    for (int64_t i = 0; i < n_ff; ++i) {
      DecodeRow(gate, i, gate_row);
      DecodeRow(up, i, up_row);
      for (int64_t entry = 0; entry < use.num_rows; ++entry) {
        const float* x = inputs[entry].data();
        const double g = Dot(x, gate_row.data(), in.cols) + (gate_bias != nullptr ? gate_bias[i] : 0);
        const double u = Dot(x, up_row.data(), in.cols) + (up_bias != nullptr ? up_bias[i] : 0);
        const double value = GatedLinear(glu, g, u);
        hidden[entry * n_ff + i] = rounds_ ? Rounded(static_cast<float>(value)) : value;
      }
    }
    for (int64_t i = 0; i < n_embd; ++i) {
      DecodeRow(down, i, down_row);
      for (int64_t entry = 0; entry < use.num_rows; ++entry) {
        const double sum = Dot(&hidden[entry * n_ff], down_row.data(), n_ff) + (down_bias != nullptr ? down_bias[i] : 0);
        RowOf(contributions, outs[entry])[i] = Rounded(static_cast<float>(sum));
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
