#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "common/thread_pool.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/expert_choice.h"
#include "kernels/cpu/gated_delta.h"
#include "kernels/cpu/panels.h"
#include "kernels/cpu/rotation.h"
#include "kernels/cpu/row_groups.h"
#include "kernels/cpu/scratch.h"
#include "kernels/host_ops.h"
#include "kernels/kv_cache_format.h"
#include "kernels/rope.h"

namespace ferry {
namespace {

static_assert(kBlock == kTileCols && kLanes == kTileRows && kAttentionTile == kKvBlockTokens);

// A region of the pool costs a few microseconds to start and join; what one core reads from the cache in less than that,
// it does alone.
constexpr int64_t kInlineBytes = 96 * 1024;
constexpr int64_t kRowsPerTask = 8;   // of operations that take a microsecond or two a row
constexpr int64_t kExpertRows = 256;  // of one expert that wait between the product and the next quantisation: 64 KiB of a panel
// Up to this many rows a product is bound by reading the weights, and a thread takes panels in stretches.
constexpr int64_t kFewRows = 16;
constexpr int64_t kStretchPanels = 16;
constexpr int64_t kLatentHeads = 16;  // of one task over a latent cache
static_assert(kStretchPanels * kFewRows <= kExpertRows && kExpertRows % kLanes == 0);

QuantizedRows RowsFrom(QuantizedRows rows, int64_t first_row) {
  rows.blocks += first_row * rows.row_stride;
  rows.poison += first_row;
  return rows;
}

GluNumbers NumbersOf(const GluParams& glu) { return {.alpha = glu.alpha, .limit = glu.limit, .up_offset = glu.up_offset}; }

class CpuOps final : public HostOps {
 public:
  CpuOps(const CpuKernels* kernels, std::unique_ptr<ThreadPool> pool)
      : kernels_(*kernels), pool_(std::move(pool)), threads_(pool_->num_threads()) {
    for (Thread& thread : threads_) thread.panel.Get(kPanelScratchBytes);
  }

  std::string name() const override {
    return absl::StrFormat("cpu (%s, %d thread%s)", kernels_.name, pool_->num_threads(), pool_->num_threads() == 1 ? "" : "s");
  }

 protected:
  absl::Status DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) override {
    ForRows(x.rows, [&](int64_t row) { kernels_.rms_norm_row(RowOf(x, row), weight, x.cols, epsilon, RowOf(out, row)); });
    return absl::OkStatus();
  }

  absl::Status DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) override {
    const bool quantized = IsQuantized(weight.layout.dtype);
    if (in.cols % kBlock != 0) in = PaddedRows(in, weight.layout.padded_cols());
    QuantizedRows rows;
    if (quantized) rows = QuantizeRows(kernels_.activations_for(weight.layout.dtype), in, nullptr);
    const int64_t blocks = weight.layout.col_blocks(), panels = NumPanels(weight.layout);
    const bool in_groups = TakesGroups(weight.layout.dtype, in.rows);
    const int64_t group_bytes = in_groups ? RowGroupBytes(kernels_.activations_for(weight.layout.dtype), blocks) : 0;
    std::byte* const groups = in_groups ? groups_[0].Get(CeilDiv(in.rows, kLanes) * group_bytes) : nullptr;
    if (in_groups) {
      Run(CeilDiv(in.rows, kLanes), false, [&](int64_t group, int) {
        const int64_t count = std::min<int64_t>(kLanes, in.rows - group * kLanes);
        GroupRows(
            kernels_.activations_for(weight.layout.dtype), rows, [&](int64_t i) { return group * kLanes + i; }, count, blocks,
            groups + group * group_bytes);
      });
    }
    const bool small = weight.layout.bytes * CeilDiv(in.rows, kFewRows) < kInlineBytes;
    const auto multiply = [&](int64_t panel, int64_t first_row, int64_t num_rows, int thread) {
      PanelProduct p = PanelOf(weight, panel, bias);
      const QuantizedRows part = quantized ? RowsFrom(rows, first_row) : rows;
      p.in = &part;
      if (in_groups) p.groups = groups + first_row / kLanes * group_bytes;
      p.float_in = RowOf(in, first_row);
      p.float_in_stride = in.stride;
      p.num_rows = num_rows;
      p.out = RowOf(out, first_row) + panel * kPanelRows;
      p.out_stride = out.stride;
      p.accumulate = accumulate;
      p.scratch = threads_[thread].panel.Get(kPanelScratchBytes);
      kernels_.panel_product(p);
    };
    // Where panels are so few that threads would be idle at the end, rows are cut too.
    const int64_t wanted_cuts = CeilDiv(4 * pool_->num_threads(), panels);
    int64_t cut_rows = std::max<int64_t>(CeilDiv(in.rows, wanted_cuts), std::min<int64_t>(in.rows, 24));
    if (in_groups) cut_rows = AlignUp(cut_rows, kLanes);
    const int64_t cuts = CeilDiv(in.rows, cut_rows);
    if (in.rows <= kFewRows || cuts == 1) {
      RunInStretches(panels, StretchFor(in.rows), small, [&](int64_t first, int64_t end, int thread) {
        for (int64_t panel = first; panel < end; ++panel) multiply(panel, 0, in.rows, thread);
      });
      return absl::OkStatus();
    }
    Run(panels * cuts, small, [&](int64_t task, int thread) {
      const int64_t first_row = task % cuts * cut_rows;
      multiply(task / cuts, first_row, std::min(cut_rows, in.rows - first_row), thread);
    });
    return absl::OkStatus();
  }

  absl::Status DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                              Tensor qkv, const KvLayer& cache, Tensor q_out) override {
    const std::vector<double> frequencies = RopeFrequencies(rope);
    const int64_t head_dim = cache.head_dim, q_size = q_out.cols, kv_size = cache.num_kv_heads * head_dim;
    Run(CeilDiv(qkv.rows, kRowsPerTask), qkv.rows <= kRowsPerTask, [&](int64_t task, int) {
      std::vector<float> cosines, sines, head_in(head_dim), rotated(head_dim);
      const auto normed = [&](const float* head, const float* weight) {
        if (weight == nullptr) return head;
        kernels_.rms_norm_row(head, weight, head_dim, norms.epsilon, head_in.data());
        return static_cast<const float*>(head_in.data());
      };
      const int64_t end = std::min(qkv.rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        const int64_t position = batch.position(first_row + row);
        AnglesOf(rope, frequencies, position, cosines, sines);
        const float* q = RowOf(qkv, row);
        const float* k = q + q_size;
        const float* v = k + kv_size;
        for (int64_t at = 0; at < q_size; at += head_dim) {
          Rotate(rope, cosines, sines, normed(q + at, norms.query), head_dim, RowOf(q_out, row) + at);
        }
        const std::vector<int32_t>& table = batch.table(first_row + row, cache);
        for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
          const int64_t to = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), head, position);
          Rotate(rope, cosines, sines, normed(k + head * head_dim, norms.key), head_dim, rotated.data());
          StoreKey(cache, to, rotated.data());
          StoreValue(cache, to, v + head * head_dim);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                           const AttentionParams& params, Tensor out) override {
    const bool latent = cache.latent_values > 0;
    const int64_t head_dim = cache.head_dim, value_dim = latent ? cache.latent_values : head_dim;
    const int64_t heads = q.cols / head_dim;
    // All heads share a latent: some at a time, so that a task's queries and sums stay in the cache.
    const int64_t group = latent ? std::min(heads, kLatentHeads) : heads / cache.num_kv_heads;
    const int64_t groups = CeilDiv(heads, group);
    if (head_dim % 16 != 0 || value_dim % 16 != 0 || head_dim > kMaxLatentHeadDim) {
      return Unimplemented("head_dim is %d; the cpu backend takes multiples of 16 up to %d", head_dim, kMaxLatentHeadDim);
    }
    if (group > kMaxHeadGroup) {
      return Unimplemented("%d query heads share a kv head; the cpu backend takes up to %d", group, kMaxHeadGroup);
    }
    const std::vector<Stretch> stretches = StretchesOf(batch, first_row, q.rows, kAttentionRows);
    const int64_t num_stretches = static_cast<int64_t>(stretches.size());
    Run(num_stretches * groups, false, [&](int64_t task, int thread) {
      // Later rows see more: the largest tasks first, so that the last ones to end are small.
      const Stretch& rows = stretches[num_stretches - 1 - task / groups];
      const int64_t first_head = task % groups * group, kv_head = latent ? 0 : task % groups;
      const std::vector<int32_t>& table = batch.table(first_row + rows.first, cache);
      AttentionTask t;
      t.keys = cache.keys, t.values = cache.values, t.key_type = cache.key_type, t.value_type = cache.value_type;
      t.num_blocks = cache.num_blocks, t.num_kv_heads = cache.num_kv_heads, t.kv_head = kv_head, t.head_dim = head_dim;
      t.value_dim = value_dim;
      t.table = table.data(), t.table_size = static_cast<int64_t>(table.size());
      t.first_position = batch.position(first_row + rows.first), t.num_rows = rows.count;
      t.window = params.window, t.group = std::min(group, heads - first_head);
      t.q = RowOf(q, rows.first) + first_head * head_dim, t.q_stride = q.stride;
      t.out = RowOf(out, rows.first) + first_head * value_dim, t.out_stride = out.stride;
      t.sinks = params.sinks == nullptr ? nullptr : params.sinks + first_head;
      t.scale = static_cast<float>(params.scale);
      t.scratch = reinterpret_cast<float*>(threads_[thread].attention.Get(AttentionScratchBytes(head_dim, value_dim, group)));
      kernels_.attention(t);
    });
    return absl::OkStatus();
  }

  absl::Status DoStoreLatent(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                             Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) override {
    const std::vector<double> frequencies = RopeFrequencies(rope);
    const int64_t dim = cache.head_dim, rank = cache.latent_values, rotated = rope.num_dims;
    const int64_t num_heads = q_out.cols / dim, q_dim = q.cols / num_heads;
    ForRows(q.rows, [&](int64_t row) {
      std::vector<float> cosines, sines, key(dim);
      const int64_t position = batch.position(first_row + row);
      AnglesOf(rope, frequencies, position, cosines, sines);
      for (int64_t head = 0; head < num_heads; ++head) {
        Rotate(rope, cosines, sines, RowOf(q, row) + (head + 1) * q_dim - rotated, rotated,
               RowOf(q_out, row) + head * dim + rank);
      }
      kernels_.rms_norm_row(RowOf(latent, row), norm.weight, rank, norm.epsilon, key.data());
      Rotate(rope, cosines, sines, RowOf(latent, row) + rank, rotated, key.data() + rank);
      const std::vector<int32_t>& table = batch.table(first_row + row, cache);
      StoreKey(cache, KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), 0, position), key.data());
    });
    return absl::OkStatus();
  }

  // One region for the panels of all heads. A head's part of a quantised row is whole blocks of it, or pairs
  // of blocks that share a scale, or else heads go one by one.
  absl::Status DoMatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) override {
    const int64_t in_cols = in.cols / weight.num_heads, out_cols = out.cols / weight.num_heads;
    const bool quantized = IsQuantized(weight.layout.dtype);
    const Activations kind = quantized ? kernels_.activations_for(weight.layout.dtype) : Activations::kNarrow;
    const bool whole_blocks =
        (quantized ? in_cols : weight.layout.cols) % (kind == Activations::kPaired ? 2 * kBlock : kBlock) == 0;
    if (!whole_blocks) return HostOps::DoMatMulPerHead(in, weight, out);
    QuantizedRows rows;
    if (quantized) rows = QuantizeRows(kind, in, nullptr);
    const int64_t panels = NumPanels(weight.layout);
    const bool small = weight.num_heads * weight.layout.bytes * CeilDiv(in.rows, kFewRows) < kInlineBytes;
    RunInStretches(weight.num_heads * panels, StretchFor(in.rows), small, [&](int64_t first, int64_t end, int thread) {
      for (; first < end; ++first) {
        const int64_t head = first / panels, panel = first % panels;
        QuantizedRows part = rows;
        if (quantized) part.blocks += head * in_cols / kBlock * BlockBytes(kind);
        PanelProduct p = PanelOf(weight.Of(head), panel, nullptr);
        p.in = &part;
        p.float_in = RowOf(in, 0) + head * in_cols;
        p.float_in_stride = in.stride;
        p.num_rows = in.rows;
        p.out = RowOf(out, 0) + head * out_cols + panel * kPanelRows;
        p.out_stride = out.stride;
        p.scratch = threads_[thread].panel.Get(kPanelScratchBytes);
        kernels_.panel_product(p);
      }
    });
    return absl::OkStatus();
  }

  // Rows before the recurrence, then each head's recurrence over the rows of each sequence, then rows after it.
  absl::Status DoGatedDelta(const HostBatch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                            const DeltaWeights& weights, const DeltaStates& states, Tensor out) override {
    const int64_t channels = net.conv_channels(), heads = net.num_heads, dim = net.head_dim, before = net.conv_taps - 1;
    const int64_t numbers = DeltaStateNumbers(net);
    const DeltaRows rows(kernels_, net, weights);
    float* const mixed = reinterpret_cast<float*>(delta_.Get(out.rows * (channels + 2 * heads) * 4));
    float* const decay = mixed + out.rows * channels;
    float* const share = decay + out.rows * heads;
    const std::vector<Stretch> stretches = StretchesOf(batch, first_row, out.rows, out.rows);
    const auto kept_of = [&](const Stretch& stretch) {
      return states.data + batch.sequence(first_row + stretch.first).slot * numbers;
    };
    std::vector<const Stretch*> stretch_of(out.rows);
    for (const Stretch& stretch : stretches) {
      if (batch.position(first_row + stretch.first) == 0) std::fill_n(kept_of(stretch), numbers, 0.0f);
      for (int64_t i = 0; i < stretch.count; ++i) stretch_of[stretch.first + i] = &stretch;
    }
    ForRows(out.rows, [&](int64_t row) {
      const Stretch& stretch = *stretch_of[row];
      const float* taps[kMaxConvTaps];
      for (int64_t tap = 0; tap <= before; ++tap) {
        const int64_t at = row - stretch.first - before + tap;  // below 0: of an earlier call
        taps[tap] = at >= 0 ? RowOf(inputs.mixed, stretch.first + at) : kept_of(stretch) + (before + at) * channels;
      }
      rows.Before(taps, mixed + row * channels);
      rows.Gates(RowOf(inputs.alpha, row), RowOf(inputs.beta, row), decay + row * heads, share + row * heads);
    });
    const int64_t tasks = static_cast<int64_t>(stretches.size()) * heads;
    Run(tasks, tasks * dim * dim * 4 < kInlineBytes, [&](int64_t task, int) {
      const Stretch& stretch = stretches[task / heads];
      const int64_t head = task % heads, key = net.key_head(head) * dim;
      const float* const first = mixed + stretch.first * channels;
      kernels_.delta({.state = kept_of(stretch) + before * channels + head * dim * dim,
                      .head_dim = dim,
                      .num_rows = stretch.count,
                      .q = first + key,
                      .k = first + net.kv_size() + key,
                      .v = first + 2 * net.kv_size() + head * dim,
                      .stride = channels,
                      .decay = decay + stretch.first * heads + head,
                      .share = share + stretch.first * heads + head,
                      .gate_stride = heads,
                      .out = RowOf(out, stretch.first) + head * dim,
                      .out_stride = out.stride});
    });
    ForRows(out.rows, [&](int64_t row) { rows.After(RowOf(inputs.gate, row), RowOf(out, row)); });
    for (const Stretch& stretch : stretches) {
      float* const kept = kept_of(stretch);
      for (int64_t i = 0; i < before; ++i) {
        const int64_t at = stretch.count - before + i;
        std::copy_n(at >= 0 ? RowOf(inputs.mixed, stretch.first + at) : kept + (before + at) * channels, channels,
                    kept + i * channels);
      }
    }
    return absl::OkStatus();
  }

  absl::Status DoMultiplyBySigmoid(Tensor gate, Tensor x) override {
    ForRows(x.rows, [&](int64_t row) {
      float* const out = RowOf(x, row);
      const float* const of = RowOf(gate, row);
      if (gate.cols == 1) {
        const float divisor = 1 + std::exp(-of[0]);
        for (int64_t i = 0; i < x.cols; ++i) out[i] /= divisor;
        return;
      }
      for (int64_t i = 0; i < x.cols; ++i) out[i] /= 1 + std::exp(-of[i]);
    });
    return absl::OkStatus();
  }

  absl::Status DoGlu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) override {
    ForRows(gate.rows,
            [&](int64_t row) { kernels_.glu(RowOf(gate, row), RowOf(up, row), gate.cols, NumbersOf(glu), RowOf(out, row)); });
    return absl::OkStatus();
  }

  absl::Status DoRoute(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                       float* weights) override {
    constexpr int64_t kExpertsPerTask = 8;
    const int64_t num_experts = config.num_experts, top_k = config.top_k;
    float* logits = reinterpret_cast<float*>(logits_.Get(in.rows * num_experts * 4));
    // Few rows: experts are divided, since reading the weights is what takes time. Many: rows are.
    const bool by_rows = in.rows > kRowsPerTask;
    const int64_t parts = by_rows ? CeilDiv(in.rows, kRowsPerTask) : CeilDiv(num_experts, kExpertsPerTask);
    Run(parts, num_experts * in.cols * 4 * CeilDiv(in.rows, 4) < kInlineBytes, [&](int64_t part, int) {
      const int64_t row = by_rows ? part * kRowsPerTask : 0;
      const int64_t rows = by_rows ? std::min(kRowsPerTask, in.rows - row) : in.rows;
      const int64_t expert = by_rows ? 0 : part * kExpertsPerTask;
      const int64_t count = by_rows ? num_experts : std::min(kExpertsPerTask, num_experts - expert);
      kernels_.float_product(router.weight + expert * in.cols, router.bias == nullptr ? nullptr : router.bias + expert, count,
                             in.cols, RowOf(in, row), in.stride, rows, logits + row * num_experts + expert, num_experts);
    });
    Run(CeilDiv(in.rows, kRowsPerTask), in.rows <= kRowsPerTask, [&](int64_t task, int) {
      ExpertChoice choice(config, router.selection_bias);
      const int64_t end = std::min(in.rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        choice.Choose(logits + row * num_experts, experts + row * top_k, weights + row * top_k);
      }
    });
    return absl::OkStatus();
  }

  // Two regions: gate, up and the activation function, which leaves the hidden rows quantised; then down. In both, the panels
  // of all experts are one flat list, so that all cores read weights until the last of them, whatever the number of experts.
  absl::Status DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                           const GluParams& params, Tensor in, Tensor contributions) override {
    ExpertCall call{
        .layout = layout, .uses = uses, .groups = groups, .glu = NumbersOf(params), .in = in, .contributions = contributions};
    std::vector<int64_t>& first_hidden = call.first_hidden;
    first_hidden.assign(uses.size() + 1, 0);
    std::vector<uint8_t> needed(in.rows, 0);
    for (size_t u = 0; u < uses.size(); ++u) {
      first_hidden[u + 1] = first_hidden[u] + uses[u].num_rows;
      const int32_t* rows = groups.rows + groups.offsets[uses[u].group];
      for (int64_t i = 0; i < uses[u].num_rows; ++i) needed[rows[i]] = 1;
    }
    if (first_hidden.back() == 0) return absl::OkStatus();

    QuantizeInputs(call, needed.data());
    const int64_t num_uses = static_cast<int64_t>(uses.size());
    const int64_t ff_panels = HiddenCols(call) / kPanelRows, embd_panels = NumPanels(layout.down);
    int64_t most_rows = 0;
    for (const ExpertUse& use : uses) most_rows = std::max(most_rows, use.num_rows);
    const bool small = layout.bytes * num_uses * CeilDiv(most_rows, kFewRows) < kInlineBytes;
    const int64_t stretch = StretchFor(most_rows);
    MakeRoomForHidden(call, most_rows);
    const int64_t units = CeilDiv(ff_panels, call.unit_panels);
    const std::vector<UseRows> parts = PartsOf(uses);
    const int64_t num_parts = static_cast<int64_t>(parts.size());
    RunInStretches(num_parts * units, CeilDiv(stretch, call.unit_panels), small, [&](int64_t first, int64_t end, int thread) {
      while (first < end) {
        const int64_t unit = first % units, count = std::min(end - first, units - unit);
        const int64_t panel = unit * call.unit_panels;
        FillHidden(call, parts[first / units], panel, std::min(count * call.unit_panels, ff_panels - panel), thread);
        first += count;
      }
    });
    RunInStretches(num_parts * embd_panels, stretch, small, [&](int64_t first, int64_t end, int thread) {
      for (; first < end; ++first) {
        const size_t part = first / embd_panels;
        const int64_t next_use = part + 1 < parts.size() ? parts[part + 1].use : num_uses;
        MultiplyDown(call, parts[part], first % embd_panels, next_use, thread);
      }
    });
    return absl::OkStatus();
  }

  float DoLogSumExp(const float* row, int64_t count) override { return kernels_.log_sum_exp(row, count); }

  void ForEach(int64_t count, const std::function<void(int64_t)>& body) override {
    Run(count, count < 2, [&](int64_t task, int) { body(task); });
  }

 private:
  // Rows of a call that follow each other in one sequence.
  struct Stretch {
    int64_t first = 0, count = 0;
  };
  static std::vector<Stretch> StretchesOf(const HostBatch& batch, int64_t first_row, int64_t num_rows, int64_t longest) {
    std::vector<Stretch> stretches;
    for (int64_t row = 0; row < num_rows; ++row) {
      const bool extends = !stretches.empty() && stretches.back().count < longest &&
                           &batch.sequence(first_row + row) == &batch.sequence(first_row + row - 1);
      if (!extends) stretches.push_back({row, 0});
      ++stretches.back().count;
    }
    return stretches;
  }

  // Rows [first, first + count) of a use.
  struct UseRows {
    int64_t use, first, count;
  };

  // A call of DoExpertMlp, and the rows between its two products: the activated gate and up of every entry.
  struct ExpertCall {
    const ExpertLayout& layout;
    const std::span<const ExpertUse> uses;
    const ExpertGroups& groups;
    const GluNumbers glu;
    const Tensor in, contributions;
    std::vector<int64_t> first_hidden = {};      // the first hidden row of each use
    QuantizedRows inputs[kNumActivations] = {};  // by Activations: gate and up may be of different types
    std::array<UseGroups, kNumActivations> input_groups = std::array<UseGroups, kNumActivations>();
    QuantizedRows hidden = {};  // when the down matrix is quantised
    UseGroups hidden_groups = UseGroups();
    int64_t unit_panels = 1;  // panels of gate and up that a thread takes together
    // Paired activations whose panels go to any threads: [hidden rows, n_ff], and how many panels of [use][pair] are there. The
    // thread that brings the second one quantises both.
    float* halves = nullptr;
    uint8_t* half_done = nullptr;
    float* hidden_floats = nullptr;  // otherwise: [hidden rows, n_ff as padded], zeros beyond n_ff
  };

  // The rows of a call that its quantised gate and up read, those that are `needed`.
  void QuantizeInputs(ExpertCall& call, const uint8_t* needed) {
    const int64_t blocks = call.layout.gate.col_blocks();
    for (const DType type : {call.layout.gate.dtype, call.layout.up.dtype}) {
      if (!IsQuantized(type)) continue;
      const Activations kind = kernels_.activations_for(type);
      QuantizedRows& rows = call.inputs[static_cast<int>(kind)];
      if (rows.blocks == nullptr) rows = QuantizeRows(kind, call.in, needed);
      UseGroups& groups = call.input_groups[static_cast<int>(kind)];
      if (groups.data != nullptr) continue;
      groups = RoomForGroups(call, type, blocks, groups_[static_cast<int>(kind)]);
      GroupInputs(call, type, rows, blocks, groups);
    }
  }

  void MakeRoomForHidden(ExpertCall& call, int64_t most_rows) {
    const DType type = call.layout.down.dtype;
    const int64_t num_hidden = call.first_hidden.back(), cols = HiddenCols(call);
    if (!IsQuantized(type)) {
      call.hidden_floats = reinterpret_cast<float*>(hidden_.Get(num_hidden * cols * 4));
      return;
    }
    call.hidden = TakeQuantizedRows(hidden_, kernels_.activations_for(type), num_hidden, cols);
    std::fill_n(call.hidden.poison, num_hidden, 0.0f);
    call.hidden_groups = RoomForGroups(call, type, call.layout.down.col_blocks(), hidden_groups_);
    if (kernels_.activations_for(type) != Activations::kPaired) return;
    // Of few rows a thread takes single panels, or the last threads would have one too many; of many rows the two that share a
    // scale, whose outputs then stay in its cache.
    if (most_rows > kFewRows) {
      call.unit_panels = 2;
      return;
    }
    const int64_t num_pairs = static_cast<int64_t>(call.uses.size()) * CeilDiv(cols / kPanelRows, 2);
    call.halves = reinterpret_cast<float*>(halves_.Get(num_hidden * cols * 4));
    call.half_done = reinterpret_cast<uint8_t*>(half_done_.Get(num_pairs));
    std::fill_n(call.half_done, num_pairs, uint8_t{0});
  }

  // A thread keeps the rows of one part in its cache while it goes through panels.
  static std::vector<UseRows> PartsOf(std::span<const ExpertUse> uses) {
    std::vector<UseRows> parts;
    for (size_t u = 0; u < uses.size(); ++u) {
      for (int64_t first = 0; first < uses[u].num_rows; first += kExpertRows) {
        parts.push_back({static_cast<int64_t>(u), first, std::min(kExpertRows, uses[u].num_rows - first)});
      }
    }
    return parts;
  }

  // Panels [first, first + count) of one matrix; the thread multiplies panel `next` of `next_weight` after them.
  struct Panels {
    const TiledMatrix& weight;
    const float* bias;
    int64_t first, count;
    const TiledMatrix& next_weight;
    int64_t next;
  };

  // Multiplies the rows by the panels, into `out` [panel][row][32].
  void MultiplyPanels(const ExpertCall& call, UseRows rows, const Panels& panels, float* out, int thread) {
    for (int64_t i = 0; i < panels.count; ++i) {
      PanelProduct p = PanelOf(panels.weight, panels.first + i, panels.bias);
      const int kind = static_cast<int>(kernels_.activations_for(panels.weight.layout.dtype));
      p.in = &call.inputs[kind];
      p.groups = call.input_groups[kind].Of(rows.use, rows.first);
      p.float_in = RowOf(call.in, 0), p.float_in_stride = call.in.stride;
      p.in_rows = call.groups.rows + call.groups.offsets[call.uses[rows.use].group] + rows.first;
      p.num_rows = rows.count;
      p.out = out + i * rows.count * kPanelRows, p.out_stride = kPanelRows;
      if (i + 1 == panels.count) SetNext(p, panels.next_weight, panels.next);
      p.scratch = threads_[thread].panel.Get(kPanelScratchBytes);
      kernels_.panel_product(p);
    }
  }

  // Gate, up and activation of panels [first_panel, first_panel + num_panels).
  void FillHidden(const ExpertCall& call, UseRows rows, int64_t first_panel, int64_t num_panels, int thread) {
    const ExpertLayout& layout = call.layout;
    const std::byte* const record = call.uses[rows.use].record;
    const TiledMatrix gate = layout.Gate(record), up = layout.Up(record);
    // Outputs [panel][row][32], of gate and of up.
    const int64_t room = kExpertRows * call.unit_panels * kPanelRows;
    float* const gate_out = reinterpret_cast<float*>(threads_[thread].products.Get(2 * room * 4));
    float* const up_out = gate_out + room;
    MultiplyPanels(call, rows, {gate, layout.GateBias(record), first_panel, num_panels, up, first_panel}, gate_out, thread);
    MultiplyPanels(call, rows, {up, layout.UpBias(record), first_panel, num_panels, gate, first_panel + num_panels}, up_out,
                   thread);
    for (int64_t panel = 0; panel < num_panels; panel += call.unit_panels) {
      const int64_t at = panel * rows.count * kPanelRows;
      Activate(call, rows, first_panel + panel, std::min(call.unit_panels, num_panels - panel), gate_out + at, up_out + at);
    }
  }

  // Panel `panel` of hidden rows, or two that share a scale, from outputs [panel][row][32] of gate and of up.
  void Activate(const ExpertCall& call, UseRows rows, int64_t panel, int64_t num_panels, const float* gate, const float* up) {
    const int64_t apart = rows.count * kPanelRows;
    for (int64_t i = 0; i < rows.count; ++i) {
      const float *const gate_row = gate + i * kPanelRows, *const up_row = up + i * kPanelRows;
      const int64_t row = call.first_hidden[rows.use] + rows.first + i;
      if (call.hidden_floats != nullptr) {
        ActivateFloats(call, row, panel, gate_row, up_row);
      } else if (call.halves != nullptr) {
        kernels_.glu(gate_row, up_row, kPanelRows, call.glu, call.halves + row * HiddenCols(call) + panel * kPanelRows);
      } else {
        QuantizeHidden(call, rows.use, rows.first + i, panel, num_panels,
                       [&](Activations kind, std::byte* blocks, float* broken) {
                         kernels_.glu_blocks(kind, gate_row, up_row, apart, num_panels, call.glu, blocks, broken);
                       });
      }
    }
    if (call.halves != nullptr) {
      JoinHalves(call, rows, panel);
    } else {
      FillLastGroup(call, rows, panel, num_panels);
    }
  }

  static int64_t HiddenCols(const ExpertCall& call) { return call.layout.down.padded_cols(); }

  void ActivateFloats(const ExpertCall& call, int64_t row, int64_t panel, const float* gate, const float* up) {
    float* const out = call.hidden_floats + row * HiddenCols(call) + panel * kPanelRows;
    const int64_t count = std::min<int64_t>(kPanelRows, call.layout.down.cols - panel * kPanelRows);
    kernels_.glu(gate, up, count, call.glu, out);
    std::fill(out + count, out + kPanelRows, 0.0f);
  }

  // Writes blocks [panel, panel + num_panels) of entry `entry` of a use, as `quantize`(kind, blocks, poison) makes them, to where
  // the down product reads them.
  template <typename Quantize>
  void QuantizeHidden(const ExpertCall& call, int64_t use, int64_t entry, int64_t panel, int64_t num_panels,
                      const Quantize& quantize) {
    const Activations kind = kernels_.activations_for(call.layout.down.dtype);
    const int64_t row = call.first_hidden[use] + entry;
    std::byte* const blocks = call.hidden.blocks + row * call.hidden.row_stride + panel * BlockBytes(kind);
    float broken = 0;
    quantize(kind, blocks, &broken);
    // Other threads may do the same for the same row at once.
    if (!(broken == 0)) std::atomic_ref<float>(call.hidden.poison[row]).store(broken, std::memory_order_relaxed);
    if (!call.hidden_groups.Has(use)) return;
    std::byte* const group = call.hidden_groups.Of(use, entry / kLanes * kLanes);
    for (int64_t i = 0; i < num_panels; ++i) PutInGroup(kind, blocks + i * BlockBytes(kind), panel + i, entry % kLanes, group);
  }

  void JoinHalves(const ExpertCall& call, UseRows rows, int64_t panel) {
    const int64_t panels = HiddenCols(call) / kPanelRows, pair = panel / 2, pair_panels = std::min<int64_t>(2, panels - 2 * pair);
    std::atomic_ref<uint8_t> done(call.half_done[rows.use * CeilDiv(panels, 2) + pair]);
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < pair_panels) return;
    for (int64_t i = 0; i < rows.count; ++i) {
      const float* const h = call.halves + (call.first_hidden[rows.use] + i) * HiddenCols(call) + 2 * pair * kPanelRows;
      QuantizeHidden(call, rows.use, i, 2 * pair, pair_panels, [&](Activations kind, std::byte* blocks, float* broken) {
        kernels_.quantize_row(kind, h, pair_panels * kPanelRows, blocks, broken);
      });
    }
    FillLastGroup(call, rows, 2 * pair, pair_panels);
  }

  // Zeros for the rows that the use's last group lacks.
  void FillLastGroup(const ExpertCall& call, UseRows rows, int64_t panel, int64_t num_panels) {
    const int64_t all = call.uses[rows.use].num_rows, over = all % kLanes;
    if (!call.hidden_groups.Has(rows.use) || over == 0 || rows.first + rows.count < all) return;
    const Activations kind = kernels_.activations_for(call.layout.down.dtype);
    PutZerosInGroup(kind, panel, num_panels, over, call.hidden_groups.Of(rows.use, all - over));
  }

  // The contributions of the rows in the columns of `panel`. After a part's last panel the thread goes on with `next_use`, unless
  // that is the number of uses.
  void MultiplyDown(const ExpertCall& call, UseRows rows, int64_t panel, int64_t next_use, int thread) {
    const ExpertLayout& layout = call.layout;
    const bool quantized = call.hidden_floats == nullptr;
    const int64_t first_hidden = call.first_hidden[rows.use] + rows.first;
    const QuantizedRows hidden = quantized ? RowsFrom(call.hidden, first_hidden) : call.hidden;
    const std::byte* const record = call.uses[rows.use].record;
    PanelProduct p = PanelOf(layout.Down(record), panel, layout.DownBias(record));
    p.in = &hidden;
    p.groups = call.hidden_groups.Of(rows.use, rows.first);
    p.float_in = quantized ? nullptr : call.hidden_floats + first_hidden * layout.down.padded_cols();
    p.float_in_stride = layout.down.padded_cols();
    p.num_rows = rows.count;
    p.out = RowOf(call.contributions, 0) + panel * kPanelRows, p.out_stride = call.contributions.stride;
    p.out_rows = call.groups.outs + call.groups.offsets[call.uses[rows.use].group] + rows.first;
    // The next part's matrix begins elsewhere.
    if (panel + 1 == NumPanels(layout.down) && next_use < static_cast<int64_t>(call.uses.size())) {
      SetNext(p, layout.Down(call.uses[next_use].record), 0);
    }
    p.scratch = threads_[thread].panel.Get(kPanelScratchBytes);
    kernels_.panel_product(p);
  }

  struct alignas(64) Thread {
    Scratch panel, products, attention;
    std::atomic<int64_t> first_left = 0;  // of this thread's part in RunInStretches
  };

  template <typename Body>
  void Run(int64_t num_tasks, bool inline_here, const Body& body) {
    if (inline_here || num_tasks < 2 || pool_->num_threads() < 2) {
      for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
      return;
    }
    pool_->ParallelFor(num_tasks, body);
  }
  // Panels that a thread takes at once. With many rows the weights of one are work enough.
  static int64_t StretchFor(int64_t num_rows) { return num_rows <= kFewRows ? kStretchPanels : 1; }

  // Calls body(first, end, thread) for stretches of [0, num_units), each unit in one of them, at most `stretch` long.
  //
  // For what reads memory in a straight line. Each thread walks through a part of its own from front to back and helps with the
  // other parts when it is done, by ever smaller stretches. Handing out stretches in turn instead costs a quarter of the read
  // rate: what a thread, and the hardware, ask for ahead is then what another thread is about to read (docs/tried.md).
  template <typename Body>
  void RunInStretches(int64_t num_units, int64_t stretch, bool inline_here, const Body& body) {
    const int64_t parts = pool_->num_threads();
    if (inline_here || parts < 2 || num_units < 2) {
      for (int64_t first = 0; first < num_units; first += stretch) {
        body(first, std::min(first + stretch, num_units), 0);
      }
      return;
    }
    for (int64_t part = 0; part < parts; ++part) {
      threads_[part].first_left.store(part * num_units / parts, std::memory_order_relaxed);
    }
    pool_->ParallelFor(parts, [&](int64_t own, int thread) {
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t part = (own + i) % parts, end = (part + 1) * num_units / parts;
        std::atomic<int64_t>& first_left = threads_[part].first_left;
        int64_t first = first_left.load(std::memory_order_relaxed);
        while (first < end) {
          const int64_t stop = first + std::clamp<int64_t>((end - first) / 4, 1, stretch);
          if (!first_left.compare_exchange_weak(first, stop, std::memory_order_relaxed)) continue;
          body(first, stop, thread);
          first = first_left.load(std::memory_order_relaxed);
        }
      }
    });
  }
  template <typename Body>
  void ForRows(int64_t num_rows, const Body& body) {
    Run(CeilDiv(num_rows, kRowsPerTask), num_rows <= kRowsPerTask, [&](int64_t task, int) {
      const int64_t end = std::min(num_rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
    });
  }
  // Rows of `in` (where `needed` is null or not zero), valid until the next call for the same kind.
  QuantizedRows QuantizeRows(Activations kind, Tensor in, const uint8_t* needed) {
    const QuantizedRows rows = TakeQuantizedRows(inputs_[static_cast<int>(kind)], kind, in.rows, in.cols);
    ForRows(in.rows, [&](int64_t row) {
      if (needed != nullptr && needed[row] == 0) return;
      kernels_.quantize_row(kind, RowOf(in, row), in.cols, rows.blocks + row * rows.row_stride, rows.poison + row);
    });
    return rows;
  }

  bool TakesGroups(DType weights, int64_t num_rows) const {
    return kernels_.takes_groups != nullptr && kernels_.takes_groups(weights, num_rows);
  }

  // Room for rows of `blocks` blocks for products with weights of `type`, of the uses that take them in groups.
  UseGroups RoomForGroups(const ExpertCall& call, DType type, int64_t blocks, Scratch& scratch) {
    UseGroups of_uses;
    of_uses.group_bytes = RowGroupBytes(kernels_.activations_for(type), blocks);
    int64_t bytes = 0;
    for (const ExpertUse& use : call.uses) {
      const bool takes = TakesGroups(type, use.num_rows);
      of_uses.first_byte.push_back(takes ? bytes : -1);
      if (takes) bytes += CeilDiv(use.num_rows, kLanes) * of_uses.group_bytes;
    }
    if (bytes > 0) of_uses.data = scratch.Get(bytes);
    return of_uses;
  }

  // The inputs of the uses that take groups.
  void GroupInputs(const ExpertCall& call, DType type, const QuantizedRows& rows, int64_t blocks, const UseGroups& of_uses) {
    struct Group {
      int64_t use, first_entry;
    };
    std::vector<Group> all;
    for (size_t u = 0; u < call.uses.size(); ++u) {
      const int64_t num_rows = of_uses.Has(u) ? call.uses[u].num_rows : 0;
      for (int64_t first = 0; first < num_rows; first += kLanes) all.push_back({static_cast<int64_t>(u), first});
    }
    if (all.empty()) return;
    Run(static_cast<int64_t>(all.size()), false, [&](int64_t task, int) {
      const auto [use, first_entry] = all[task];
      const int32_t* const entries = call.groups.rows + call.groups.offsets[call.uses[use].group] + first_entry;
      GroupRows(
          kernels_.activations_for(type), rows, [&](int64_t i) -> int64_t { return entries[i]; },
          std::min<int64_t>(kLanes, call.uses[use].num_rows - first_entry), blocks, of_uses.Of(use, first_entry));
    });
  }

  // Rows of `in` with zeros behind them up to `cols`, valid until the next call.
  Tensor PaddedRows(Tensor in, int64_t cols) {
    const Tensor padded(padded_.Get(in.rows * cols * 4), DType::kF32, in.rows, cols);
    ForRows(in.rows, [&](int64_t row) {
      std::copy_n(RowOf(in, row), in.cols, RowOf(padded, row));
      std::fill(RowOf(padded, row) + in.cols, RowOf(padded, row) + cols, 0.0f);
    });
    return padded;
  }

  const CpuKernels& kernels_;
  const std::unique_ptr<ThreadPool> pool_;
  std::vector<Thread> threads_;                                         // scratch of each thread of the pool
  Scratch inputs_[kNumActivations], hidden_, logits_, padded_, delta_;  // inputs by Activations
  Scratch groups_[kNumActivations], hidden_groups_, halves_, half_done_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> CreateCpuOps(const BackendOptions& options) {
  if (options.num_threads < 0) return InvalidArgument("num_threads is %d, want 0 (physical cores) or more", options.num_threads);
  ASSIGN_OR_RETURN(const CpuKernels* kernels, SelectKernels(options.isa));
  ThreadPoolOptions pool_options;
  pool_options.num_threads = options.num_threads;
  pool_options.pin = options.pin_threads;
  ASSIGN_OR_RETURN(std::unique_ptr<ThreadPool> pool, ThreadPool::Create(pool_options));
  return std::make_unique<CpuOps>(kernels, std::move(pool));
}

}  // namespace ferry
