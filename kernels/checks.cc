#include "kernels/checks.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "common/model/limits.h"

namespace ferry {
namespace {

// The rows of one sequence that a call works on.
struct Segment {
  const BatchSequence& sequence;
  int64_t first_position;
  int64_t num_rows;
};

// Calls body(segment) for the sequences of rows [first_row, first_row + num_rows), which lie in the batch.
template <typename Body>
absl::Status ForEachSegment(const Batch& batch, int64_t first_row, int64_t num_rows, const Body& body) {
  for (const BatchSequence& sequence : batch.sequences) {
    const int64_t first = std::max(first_row, sequence.first_row);
    const int64_t end = std::min(first_row + num_rows, sequence.first_row + sequence.num_rows);
    if (first >= end) continue;
    RETURN_IF_ERROR(body(Segment{sequence, sequence.first_position + first - sequence.first_row, end - first}));
  }
  return absl::OkStatus();
}

absl::Status CheckRowsInBatch(const Batch& batch, int64_t first_row, int64_t num_rows) {
  if (first_row < 0 || first_row > batch.num_rows() || num_rows > batch.num_rows() - first_row) {
    return InvalidArgument("rows [%d, %d) are not in a batch of %d rows", first_row, first_row + num_rows, batch.num_rows());
  }
  return absl::OkStatus();
}

absl::Status CheckKvLayer(const KvLayer& cache, std::initializer_list<DType> kv_dtypes) {
  RETURN_IF_ERROR(CheckKvShape(cache, kv_dtypes));
  RETURN_IF_ERROR(CheckNotNull("cache.keys", cache.keys));
  return cache.latent_values > 0 ? absl::OkStatus() : CheckNotNull("cache.values", cache.values);
}

// The table of `segment` reaches positions [first, end), which must lie in it all at once, and its blocks are in the
// cache.
absl::Status CheckTable(const Segment& segment, const KvLayer& cache, int64_t first, int64_t end) {
  const std::vector<int32_t>& table = cache.ring ? segment.sequence.ring_blocks : segment.sequence.blocks;
  const char* name = cache.ring ? "ring_blocks" : "blocks";
  const int64_t num_tokens = static_cast<int64_t>(table.size()) * kKvBlockTokens;
  if (cache.ring ? end - first > num_tokens : end > num_tokens) {
    return InvalidArgument("%s of the sequence at row %d has %d blocks of %d, too few for positions [%d, %d)", name,
                           segment.sequence.first_row, table.size(), kKvBlockTokens, first, end);
  }
  for (const int32_t block : table) {
    if (block < 0 || block >= cache.num_blocks) {
      return InvalidArgument("%s of the sequence at row %d names block %d, want 0 to %d", name, segment.sequence.first_row, block,
                             cache.num_blocks - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRope(const RopeConfig& rope, int64_t most_dims) {
  RETURN_IF_ERROR(CheckInRange("rope.num_dims", rope.num_dims, 0, most_dims));
  if (rope.num_dims % 2 != 0) return InvalidArgument("rope.num_dims is %d, want an even number", rope.num_dims);
  if (!(rope.freq_base > 1)) return InvalidArgument("rope.freq_base is %g, want more than 1", rope.freq_base);
  if (!(rope.yarn_factor > 0)) return InvalidArgument("rope.yarn_factor is %g, want more than 0", rope.yarn_factor);
  return absl::OkStatus();
}

absl::Status CheckMatrix(std::string_view name, const TiledMatrix& matrix) {
  if (matrix.layout.rows < 1 || matrix.layout.cols < 1) return InvalidArgument("%s has no shape", name);
  RETURN_IF_ERROR(CheckNotNull(name, matrix.data));
  if (reinterpret_cast<uintptr_t>(matrix.data) % kPlaneAlignment != 0) {
    return InvalidArgument("%s is not aligned to %d bytes", name, kPlaneAlignment);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTensor(std::string_view name, const Tensor& tensor) {
  if (tensor.rows < 0 || tensor.cols < 0) return InvalidArgument("%s is [%d, %d]", name, tensor.rows, tensor.cols);
  if (tensor.stride < tensor.cols) {
    return InvalidArgument("%s has a stride of %d, want at least its %d columns", name, tensor.stride, tensor.cols);
  }
  if (tensor.rows > 0 && tensor.cols > 0 && tensor.data == nullptr) return InvalidArgument("%s is null", name);
  return absl::OkStatus();
}

absl::Status CheckShape(std::string_view name, const Tensor& tensor, int64_t rows, int64_t cols) {
  RETURN_IF_ERROR(CheckTensor(name, tensor));
  if (tensor.rows == rows && tensor.cols == cols) return absl::OkStatus();
  return InvalidArgument("%s is [%d, %d], want [%d, %d]", name, tensor.rows, tensor.cols, rows, cols);
}

absl::Status CheckInRange(std::string_view name, int64_t value, int64_t first, int64_t last) {
  if (value >= first && value <= last) return absl::OkStatus();
  return InvalidArgument("%s is %d, want %d to %d", name, value, first, last);
}

absl::Status CheckDType(std::string_view name, DType dtype, std::initializer_list<DType> allowed) {
  std::string names;
  for (const DType type : allowed) {
    if (type == dtype) return absl::OkStatus();
    if (!names.empty()) names += " or ";
    names += NameOf(type);
  }
  return InvalidArgument("%s is of type %s, want %s", name, NameOf(dtype), names);
}

absl::Status CheckNotNull(std::string_view name, const void* pointer) {
  if (pointer != nullptr) return absl::OkStatus();
  return InvalidArgument("%s is null", name);
}

absl::Status CheckBatch(const Batch& batch) {
  int64_t next_row = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const BatchSequence& sequence = batch.sequences[i];
    if (sequence.first_row != next_row) {
      return InvalidArgument("sequences[%d].first_row is %d, want %d", i, sequence.first_row, next_row);
    }
    if (sequence.num_rows < 1) {
      return InvalidArgument("sequences[%d].num_rows is %d, want at least 1", i, sequence.num_rows);
    }
    if (sequence.first_position < 0 || sequence.first_position > INT32_MAX - sequence.num_rows) {
      return InvalidArgument("sequences[%d].first_position is %d", i, sequence.first_position);
    }
    const int64_t end = sequence.first_position + sequence.num_rows;
    const int64_t num_blocks = static_cast<int64_t>(sequence.blocks.size());
    if (num_blocks > 0 && num_blocks * kKvBlockTokens < end) {
      return InvalidArgument("sequences[%d].blocks has %d entries, want %d for %d positions", i, num_blocks,
                             (end + kKvBlockTokens - 1) / kKvBlockTokens, end);
    }
    for (const auto* table : {&sequence.blocks, &sequence.ring_blocks}) {
      for (const int32_t block : *table) {
        if (block < 0) return InvalidArgument("sequences[%d] names block %d, want 0 or more", i, block);
      }
    }
    next_row += sequence.num_rows;
  }
  if (!batch.token_ids.empty() && static_cast<int64_t>(batch.token_ids.size()) != next_row) {
    return InvalidArgument("token_ids has %d entries, want %d (one a row) or none", batch.token_ids.size(), next_row);
  }
  for (size_t row = 0; row < batch.token_ids.size(); ++row) {
    if (batch.token_ids[row] < 0) {
      return InvalidArgument("token_ids[%d] is %d, want 0 or more", row, batch.token_ids[row]);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckEmbed(const Batch& batch, int64_t first_row, const TiledMatrix& table, const Tensor& x) {
  RETURN_IF_ERROR(CheckMatrix("table", table));
  RETURN_IF_ERROR(CheckShape("x", x, x.rows, table.layout.cols));
  RETURN_IF_ERROR(CheckDType("x", x.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckRowsInBatch(batch, first_row, x.rows));
  if (x.rows > 0 && batch.token_ids.empty()) return InvalidArgument("the batch has no token_ids");
  for (int64_t row = first_row; row < first_row + x.rows; ++row) {
    if (batch.token_ids[row] >= table.layout.rows) {
      return InvalidArgument("token_ids[%d] is %d, want 0 to %d", row, batch.token_ids[row], table.layout.rows - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRmsNorm(const Tensor& x, const float* weight, double epsilon, const Tensor& out, DType act) {
  RETURN_IF_ERROR(CheckTensor("x", x));
  RETURN_IF_ERROR(CheckDType("x", x.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckInRange("x.cols", x.cols, 1, INT32_MAX));
  RETURN_IF_ERROR(CheckNotNull("weight", weight));
  if (!(epsilon >= 0)) return InvalidArgument("epsilon is %g, want 0 or more", epsilon);
  RETURN_IF_ERROR(CheckShape("out", out, x.rows, x.cols));
  return CheckDType("out", out.dtype, {DType::kF32, act});
}

absl::Status CheckMatMul(const Tensor& in, const TiledMatrix& weight, const Tensor& out, bool accumulate, DType act) {
  RETURN_IF_ERROR(CheckMatrix("weight", weight));
  RETURN_IF_ERROR(CheckShape("in", in, in.rows, weight.layout.cols));
  RETURN_IF_ERROR(CheckDType("in", in.dtype, {act}));
  RETURN_IF_ERROR(CheckShape("out", out, in.rows, weight.layout.rows));
  if (accumulate) return CheckDType("out", out.dtype, {DType::kF32});
  return CheckDType("out", out.dtype, {DType::kF32, act});
}

absl::Status CheckKvShape(const KvLayer& cache, std::initializer_list<DType> kv_dtypes) {
  RETURN_IF_ERROR(CheckDType("cache.keys", cache.key_type, kv_dtypes));
  RETURN_IF_ERROR(CheckDType("cache.values", cache.value_type, kv_dtypes));
  RETURN_IF_ERROR(CheckInRange("cache.num_kv_heads", cache.num_kv_heads, 1, 1 << 16));
  RETURN_IF_ERROR(CheckInRange("cache.head_dim", cache.head_dim, 1, 1 << 16));
  RETURN_IF_ERROR(CheckInRange("cache.num_blocks", cache.num_blocks, 1, int64_t{1} << 31));
  RETURN_IF_ERROR(CheckInRange("cache.latent_values", cache.latent_values, 0, cache.head_dim));
  if (cache.latent_values > 0 && cache.num_kv_heads != 1) {
    return InvalidArgument("cache.num_kv_heads is %d, want 1 for a latent cache", cache.num_kv_heads);
  }
  const bool quantized = cache.key_type == DType::kQ8_0 || cache.value_type == DType::kQ8_0;
  if (quantized && cache.head_dim % 32 != 0) {
    return InvalidArgument("cache.head_dim is %d, want a multiple of 32 for Q8_0", cache.head_dim);
  }
  return absl::OkStatus();
}

absl::Status CheckRopeAndStore(const Batch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                               const Tensor& qkv, const KvLayer& cache, const Tensor& q_out, DType act,
                               std::initializer_list<DType> kv_dtypes) {
  RETURN_IF_ERROR(CheckKvLayer(cache, kv_dtypes));
  RETURN_IF_ERROR(CheckTensor("q_out", q_out));
  RETURN_IF_ERROR(CheckDType("q_out", q_out.dtype, {act}));
  if (q_out.cols < 1 || q_out.cols % (cache.num_kv_heads * cache.head_dim) != 0) {
    return InvalidArgument("q_out has %d columns, want a multiple of %d (%d kv heads of %d)", q_out.cols,
                           cache.num_kv_heads * cache.head_dim, cache.num_kv_heads, cache.head_dim);
  }
  RETURN_IF_ERROR(CheckShape("qkv", qkv, q_out.rows, q_out.cols + 2 * cache.num_kv_heads * cache.head_dim));
  RETURN_IF_ERROR(CheckDType("qkv", qkv.dtype, {DType::kF32, act}));
  if (cache.latent_values > 0) return InvalidArgument("cache is latent, which StoreLatent fills");
  RETURN_IF_ERROR(CheckRope(rope, cache.head_dim));
  if ((norms.query == nullptr) != (norms.key == nullptr))
    return InvalidArgument("norms has one of query and key, want both or none");
  if (!(norms.epsilon >= 0)) return InvalidArgument("norms.epsilon is %g, want 0 or more", norms.epsilon);
  RETURN_IF_ERROR(CheckRowsInBatch(batch, first_row, qkv.rows));
  return ForEachSegment(batch, first_row, qkv.rows, [&](const Segment& segment) {
    return CheckTable(segment, cache, segment.first_position, segment.first_position + segment.num_rows);
  });
}

absl::Status CheckAttention(const Batch& batch, int64_t first_row, const Tensor& q, const KvLayer& cache,
                            const AttentionParams& params, const Tensor& out, DType act, std::initializer_list<DType> kv_dtypes) {
  RETURN_IF_ERROR(CheckKvLayer(cache, kv_dtypes));
  RETURN_IF_ERROR(CheckTensor("q", q));
  RETURN_IF_ERROR(CheckDType("q", q.dtype, {act}));
  if (q.cols < 1 || q.cols % (cache.num_kv_heads * cache.head_dim) != 0) {
    return InvalidArgument("q has %d columns, want a multiple of %d (%d kv heads of %d)", q.cols,
                           cache.num_kv_heads * cache.head_dim, cache.num_kv_heads, cache.head_dim);
  }
  const int64_t out_dim = cache.latent_values > 0 ? cache.latent_values : cache.head_dim;
  RETURN_IF_ERROR(CheckShape("out", out, q.rows, q.cols / cache.head_dim * out_dim));
  RETURN_IF_ERROR(CheckDType("out", out.dtype, {act}));
  RETURN_IF_ERROR(CheckInRange("window", params.window, 0, INT32_MAX));
  if (!(params.scale > 0 && params.scale < 1e6)) return InvalidArgument("scale is %g, want more than 0", params.scale);
  RETURN_IF_ERROR(CheckRowsInBatch(batch, first_row, q.rows));
  return ForEachSegment(batch, first_row, q.rows, [&](const Segment& segment) {
    const int64_t first = params.window == 0 ? 0 : std::max<int64_t>(0, segment.first_position - params.window + 1);
    return CheckTable(segment, cache, first, segment.first_position + segment.num_rows);
  });
}

absl::Status CheckStoreLatent(const Batch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                              const Tensor& latent, const KvLayer& cache, const Tensor& q, const Tensor& q_out, DType act,
                              std::initializer_list<DType> kv_dtypes) {
  RETURN_IF_ERROR(CheckKvLayer(cache, kv_dtypes));
  RETURN_IF_ERROR(CheckInRange("cache.latent_values", cache.latent_values, 1, cache.head_dim));
  RETURN_IF_ERROR(CheckRope(rope, cache.head_dim));
  RETURN_IF_ERROR(
      CheckInRange("rope.num_dims", rope.num_dims, cache.head_dim - cache.latent_values, cache.head_dim - cache.latent_values));
  RETURN_IF_ERROR(CheckNotNull("norm.weight", norm.weight));
  if (!(norm.epsilon >= 0)) return InvalidArgument("norm.epsilon is %g, want 0 or more", norm.epsilon);
  RETURN_IF_ERROR(CheckTensor("q", q));
  RETURN_IF_ERROR(CheckDType("q", q.dtype, {act}));
  RETURN_IF_ERROR(CheckShape("latent", latent, q.rows, cache.head_dim));
  RETURN_IF_ERROR(CheckDType("latent", latent.dtype, {DType::kF32}));
  if (q_out.cols < 1 || q_out.cols % cache.head_dim != 0) {
    return InvalidArgument("q_out has %d columns, want a multiple of %d", q_out.cols, cache.head_dim);
  }
  RETURN_IF_ERROR(CheckShape("q_out", q_out, q.rows, q_out.cols));
  RETURN_IF_ERROR(CheckDType("q_out", q_out.dtype, {act}));
  const int64_t heads = q_out.cols / cache.head_dim;
  if (q.cols % heads != 0 || q.cols / heads < rope.num_dims) {
    return InvalidArgument("q has %d columns, want %d heads of at least %d", q.cols, heads, rope.num_dims);
  }
  RETURN_IF_ERROR(CheckRowsInBatch(batch, first_row, q.rows));
  return ForEachSegment(batch, first_row, q.rows, [&](const Segment& segment) {
    return CheckTable(segment, cache, segment.first_position, segment.first_position + segment.num_rows);
  });
}

absl::Status CheckMatMulPerHead(const Tensor& in, const HeadMatrices& weight, const Tensor& out, DType act) {
  RETURN_IF_ERROR(CheckInRange("weight.num_heads", weight.num_heads, 1, 1 << 16));
  RETURN_IF_ERROR(CheckMatrix("weight", weight.Of(0)));
  for (const auto& [name, tensor, least] :
       {std::tuple{"in", &in, weight.layout.cols}, std::tuple{"out", &out, weight.layout.rows}}) {
    RETURN_IF_ERROR(CheckTensor(name, *tensor));
    RETURN_IF_ERROR(CheckDType(name, tensor->dtype, {act}));
    if (tensor->cols % weight.num_heads != 0 || tensor->cols / weight.num_heads < least) {
      return InvalidArgument("%s has %d columns, want %d heads of at least %d", name, tensor->cols, weight.num_heads, least);
    }
  }
  return CheckShape("out", out, in.rows, out.cols);
}

absl::Status CheckGatedDelta(const Batch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                             const DeltaWeights& weights, const DeltaStates& states, const Tensor& out, DType act) {
  if (!net.delta()) return InvalidArgument("net is no gated delta net");
  RETURN_IF_ERROR(CheckInRange("net.num_kv_heads", net.num_kv_heads, 1, 1 << 16));
  RETURN_IF_ERROR(CheckInRange("net.num_heads", net.num_heads, net.num_kv_heads, 1 << 16));
  if (net.num_heads % net.num_kv_heads != 0) {
    return InvalidArgument("net.num_heads is %d, want a multiple of the %d key heads", net.num_heads, net.num_kv_heads);
  }
  RETURN_IF_ERROR(CheckInRange("net.head_dim", net.head_dim, kDeltaColumns, 1 << 10));
  if (net.head_dim % kDeltaColumns != 0) {
    return InvalidArgument("net.head_dim is %d, want a multiple of %d", net.head_dim, kDeltaColumns);
  }
  RETURN_IF_ERROR(CheckInRange("net.conv_taps", net.conv_taps, 2, kMaxConvTaps));
  RETURN_IF_ERROR(CheckShape("out", out, out.rows, net.q_size()));
  RETURN_IF_ERROR(CheckDType("out", out.dtype, {act}));
  for (const auto& [name, tensor, cols] :
       {std::tuple{"mixed", &inputs.mixed, net.conv_channels()}, std::tuple{"gate", &inputs.gate, net.q_size()},
        std::tuple{"beta", &inputs.beta, net.num_heads}, std::tuple{"alpha", &inputs.alpha, net.num_heads}}) {
    RETURN_IF_ERROR(CheckShape(name, *tensor, out.rows, cols));
    RETURN_IF_ERROR(CheckDType(name, tensor->dtype, {DType::kF32}));
  }
  for (const auto& [name, vector] : {std::pair{"conv", weights.conv}, std::pair{"time_bias", weights.time_bias},
                                     std::pair{"decay", weights.decay}, std::pair{"norm", weights.norm}}) {
    RETURN_IF_ERROR(CheckNotNull(name, vector));
  }
  if (!(weights.epsilon >= 0)) return InvalidArgument("epsilon is %g, want 0 or more", weights.epsilon);
  RETURN_IF_ERROR(CheckNotNull("states", states.data));
  RETURN_IF_ERROR(CheckRowsInBatch(batch, first_row, out.rows));
  return ForEachSegment(batch, first_row, out.rows, [&](const Segment& segment) {
    return CheckInRange("slot", segment.sequence.slot, 0, states.num_slots - 1);
  });
}

absl::Status CheckMultiplyBySigmoid(const Tensor& gate, const Tensor& x, DType act) {
  RETURN_IF_ERROR(CheckTensor("x", x));
  RETURN_IF_ERROR(CheckDType("x", x.dtype, {act}));
  RETURN_IF_ERROR(CheckShape("gate", gate, x.rows, gate.cols == 1 ? 1 : x.cols));
  return CheckDType("gate", gate.dtype, {DType::kF32});
}

absl::Status CheckGlu(const Tensor& gate, const Tensor& up, const Tensor& out, DType act) {
  RETURN_IF_ERROR(CheckTensor("gate", gate));
  RETURN_IF_ERROR(CheckDType("gate", gate.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckShape("up", up, gate.rows, gate.cols));
  RETURN_IF_ERROR(CheckDType("up", up.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckShape("out", out, gate.rows, gate.cols));
  return CheckDType("out", out.dtype, {act});
}

absl::Status CheckRoute(const Tensor& in, const RouterWeights& router, const RouterConfig& config, const int32_t* experts,
                        const float* weights, DType act) {
  RETURN_IF_ERROR(CheckTensor("in", in));
  RETURN_IF_ERROR(CheckDType("in", in.dtype, {act}));
  RETURN_IF_ERROR(CheckNotNull("weight", router.weight));
  RETURN_IF_ERROR(CheckInRange("num_experts", config.num_experts, 1, kMaxExperts));
  RETURN_IF_ERROR(CheckInRange("num_groups", config.num_groups, 1, config.num_experts));
  if (config.num_experts % config.num_groups != 0) {
    return InvalidArgument("num_groups is %d, want a divisor of the %d experts", config.num_groups, config.num_experts);
  }
  RETURN_IF_ERROR(CheckInRange("groups_used", config.groups_used, 1, config.num_groups));
  RETURN_IF_ERROR(CheckInRange("group_best", config.group_best, 1, 2));
  RETURN_IF_ERROR(CheckInRange("top_k", config.top_k, 1, config.groups_used * (config.num_experts / config.num_groups)));
  if (in.rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("experts", experts));
  return CheckNotNull("weights", weights);
}

absl::Status CheckGroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, const int32_t* offsets,
                                const int32_t* entry_rows, const int32_t* entry_outs) {
  RETURN_IF_ERROR(CheckInRange("rows", rows, 0, INT32_MAX));
  RETURN_IF_ERROR(CheckInRange("num_experts", num_experts, 1, kMaxExperts));
  RETURN_IF_ERROR(CheckInRange("top_k", top_k, 1, num_experts));
  RETURN_IF_ERROR(CheckInRange("rows * top_k", rows * top_k, 0, INT32_MAX));
  if (rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("experts", experts));
  RETURN_IF_ERROR(CheckNotNull("offsets", offsets));
  RETURN_IF_ERROR(CheckNotNull("entry_rows", entry_rows));
  return CheckNotNull("entry_outs", entry_outs);
}

absl::Status CheckExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                            const Tensor& in, const Tensor& contributions, DType act, DType contribution) {
  RETURN_IF_ERROR(CheckShape("in", in, in.rows, layout.gate.cols));
  RETURN_IF_ERROR(CheckDType("in", in.dtype, {act}));
  RETURN_IF_ERROR(CheckShape("contributions", contributions, contributions.rows, layout.down.rows));
  RETURN_IF_ERROR(CheckDType("contributions", contributions.dtype, {contribution}));
  RETURN_IF_ERROR(CheckInRange("groups.num_groups", groups.num_groups, 0, INT32_MAX));
  RETURN_IF_ERROR(CheckInRange("groups.num_entries", groups.num_entries, 0, INT32_MAX));
  if (uses.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("groups.offsets", groups.offsets));
  if (groups.num_entries > 0) {
    RETURN_IF_ERROR(CheckNotNull("groups.rows", groups.rows));
    RETURN_IF_ERROR(CheckNotNull("groups.outs", groups.outs));
  }
  for (size_t i = 0; i < uses.size(); ++i) {
    const ExpertUse& use = uses[i];
    if (use.group < 0 || use.group >= groups.num_groups) {
      return InvalidArgument("uses[%d].group is %d, want 0 to %d", i, use.group, groups.num_groups - 1);
    }
    if (use.num_rows < 0 || use.num_rows > groups.num_entries) {
      return InvalidArgument("uses[%d].num_rows is %d, want 0 to %d", i, use.num_rows, groups.num_entries);
    }
    if (use.record == nullptr) return InvalidArgument("uses[%d].record is null", i);
    if (reinterpret_cast<uintptr_t>(use.record) % kPlaneAlignment != 0) {
      return InvalidArgument("uses[%d].record is not aligned to %d bytes", i, kPlaneAlignment);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                       const Tensor& contributions, DType contribution) {
  RETURN_IF_ERROR(CheckTensor("contributions", contributions));
  RETURN_IF_ERROR(CheckDType("contributions", contributions.dtype, {contribution}));
  if (host_rows.size() != outs.size() * static_cast<size_t>(contributions.cols)) {
    return InvalidArgument("host_rows holds %d numbers, want %d (%d rows of %d)", host_rows.size(),
                           outs.size() * contributions.cols, outs.size(), contributions.cols);
  }
  for (size_t i = 0; i < outs.size(); ++i) {
    if (outs[i] < 0 || outs[i] >= contributions.rows) {
      return InvalidArgument("outs[%d] is %d, want 0 to %d", i, outs[i], contributions.rows - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCombine(const Tensor& contributions, const float* weights, int64_t top_k, const Tensor& x, DType contribution) {
  RETURN_IF_ERROR(CheckInRange("top_k", top_k, 1, kMaxExperts));
  RETURN_IF_ERROR(CheckTensor("x", x));
  RETURN_IF_ERROR(CheckDType("x", x.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckShape("contributions", contributions, x.rows * top_k, x.cols));
  RETURN_IF_ERROR(CheckDType("contributions", contributions.dtype, {contribution}));
  return x.rows == 0 ? absl::OkStatus() : CheckNotNull("weights", weights);
}

namespace {

absl::Status CheckRowsOf(const Tensor& in, std::span<const int32_t> host_rows) {
  for (size_t i = 0; i < host_rows.size(); ++i) {
    if (host_rows[i] < 0 || host_rows[i] >= in.rows) {
      return InvalidArgument("host_rows[%d] is %d, want 0 to %d", i, host_rows[i], in.rows - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGatherRows(const Tensor& in, std::span<const int32_t> host_rows, const Tensor& out) {
  RETURN_IF_ERROR(CheckTensor("in", in));
  RETURN_IF_ERROR(CheckShape("out", out, static_cast<int64_t>(host_rows.size()), in.cols));
  RETURN_IF_ERROR(CheckDType("out", out.dtype, {in.dtype}));
  return CheckRowsOf(in, host_rows);
}

absl::Status CheckDownloadRows(const Tensor& in, std::span<const int32_t> host_rows, std::span<const float> host_out) {
  RETURN_IF_ERROR(CheckTensor("in", in));
  if (host_out.size() != host_rows.size() * static_cast<size_t>(in.cols)) {
    return InvalidArgument("host_out holds %d numbers, want %d (%d rows of %d)", host_out.size(), host_rows.size() * in.cols,
                           host_rows.size(), in.cols);
  }
  return CheckRowsOf(in, host_rows);
}

absl::Status CheckReadLogits(const Tensor& logits, std::span<const LogitsRequest> requests) {
  RETURN_IF_ERROR(CheckTensor("logits", logits));
  RETURN_IF_ERROR(CheckDType("logits", logits.dtype, {DType::kF32}));
  RETURN_IF_ERROR(CheckInRange("logits.cols", logits.cols, 1, INT32_MAX));
  if (static_cast<int64_t>(requests.size()) != logits.rows) {
    return InvalidArgument("requests has %d entries, want %d (one a row)", requests.size(), logits.rows);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].top_n < 0) return InvalidArgument("requests[%d].top_n is %d, want 0 or more", i, requests[i].top_n);
    if (requests[i].target < -1 || requests[i].target >= logits.cols) {
      return InvalidArgument("requests[%d].target is %d, want -1 to %d", i, requests[i].target, logits.cols - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace ferry
