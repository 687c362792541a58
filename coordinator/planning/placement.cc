#include "coordinator/planning/placement.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/cache_move.h"
#include "common/model/model_tensors.h"
#include "coordinator/planning/name_pattern.h"
#include "kernels/ops.h"

namespace ferry {
namespace {

constexpr int64_t kDefaultContextPerRequest = 4096;
constexpr int64_t kSmallestAutoBatch = 2048, kLargestAutoBatch = 16384;
constexpr int64_t kContextShare = 16;     // of a GPU's memory: its reciprocal
constexpr int64_t kActivationShare = 16;  // of a GPU's memory: its reciprocal; slots and KV cache need the rest
constexpr int64_t kSmallestAutoMicroBatch = 512, kLargestAutoMicroBatch = 4096;
constexpr int64_t kMicroBatchShare = 64;  // of a GPU's memory, likewise
constexpr int64_t kMaxParallel = 256;
constexpr int64_t kMaxHostBlocks = 1 << 17;  // 4 million tokens: the coordinator has some hundred bytes of its own for each
constexpr int64_t kMaxHostStates = 1024;
constexpr int64_t kMaxBatchTokens = 65536;

std::optional<int64_t> ParseInt(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

absl::StatusOr<std::vector<LayerRange>> ParseLayers(const std::string& layers, const PlacementOptions& options,
                                                    int64_t num_layers) {
  std::vector<LayerRange> ranges;
  int64_t next = 0;
  for (const absl::string_view part : absl::StrSplit(layers, ',')) {
    const std::vector<std::string> ends = absl::StrSplit(part, '-');
    const std::optional<int64_t> first = ParseInt(ends.front());
    const std::optional<int64_t> last = ParseInt(ends.back());
    if (ends.size() > 2 || !first || !last) {
      return InvalidArgument("--layers has '%s', want ranges such as 0-9,10-23", part);
    }
    if (*first != next || *last < *first) {
      return InvalidArgument("--layers has '%s' where the next range must begin at layer %d", part, next);
    }
    ranges.push_back({.first = *first, .end = *last + 1});
    next = *last + 1;
  }
  if (next != num_layers) return InvalidArgument("--layers ends at layer %d, the model's last is %d", next - 1, num_layers - 1);
  if (static_cast<int64_t>(ranges.size()) != options.num_workers) {
    return InvalidArgument("--layers has %d ranges for %d workers", ranges.size(), options.num_workers);
  }
  return ranges;
}

// Bytes that worker [first, end) would be charged with.
int64_t RangeBytes(const ModelSizes& sizes, int64_t first, int64_t end) {
  int64_t bytes = first == 0 ? sizes.embedding_bytes : 0;
  for (int64_t layer = first; layer < end; ++layer) bytes += sizes.dense_bytes[layer] + sizes.expert_bytes[layer];
  if (end == static_cast<int64_t>(sizes.dense_bytes.size())) bytes += sizes.output_bytes;
  return bytes;
}

// Contiguous ranges of at least one layer whose heaviest is as light as can be: dynamic programming over (workers, layers).
std::vector<LayerRange> EvenRanges(const ModelSizes& sizes, int64_t num_workers) {
  const int64_t num_layers = static_cast<int64_t>(sizes.dense_bytes.size());
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  // heaviest[w][l]: of the first w workers holding the first l layers; cut[w][l]: where worker w-1 begins there.
  std::vector heaviest(num_workers + 1, std::vector<int64_t>(num_layers + 1, kNever));
  std::vector cut(num_workers + 1, std::vector<int64_t>(num_layers + 1, 0));
  heaviest[0][0] = 0;
  for (int64_t w = 1; w <= num_workers; ++w) {
    for (int64_t end = w; end <= num_layers; ++end) {
      for (int64_t first = w - 1; first < end; ++first) {
        if (heaviest[w - 1][first] == kNever) continue;
        const int64_t load = std::max(heaviest[w - 1][first], RangeBytes(sizes, first, end));
        if (load < heaviest[w][end]) heaviest[w][end] = load, cut[w][end] = first;
      }
    }
  }
  std::vector<LayerRange> ranges(num_workers);
  int64_t end = num_layers;
  for (int64_t w = num_workers; w > 0; --w) {
    ranges[w - 1] = {.first = cut[w][end], .end = end};
    end = cut[w][end];
  }
  return ranges;
}

struct OverrideRule {
  std::string text;
  NamePattern pattern;
  bool host = false;
  int64_t worker = 0;  // of gpuN
};

absl::StatusOr<OverrideRule> ParseOverride(const std::string& text, int64_t num_workers) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) {
    return InvalidArgument("-ot '%s' is not REGEX=cpu or REGEX=gpuN", text);
  }
  absl::StatusOr<NamePattern> pattern = NamePattern::Create(text.substr(0, equals));
  if (!pattern.ok()) return Annotate(pattern.status(), absl::StrFormat("-ot '%s'", text));
  OverrideRule rule{.text = text, .pattern = *std::move(pattern)};
  std::string target = text.substr(equals + 1);
  std::transform(target.begin(), target.end(), target.begin(), [](unsigned char c) { return std::tolower(c); });
  if (target == "cpu") {
    rule.host = true;
    return rule;
  }
  std::optional<int64_t> worker;
  for (const std::string_view prefix : {"gpu", "cuda"}) {
    if (target.starts_with(prefix)) worker = ParseInt(std::string_view(target).substr(prefix.size()));
  }
  if (!worker) return InvalidArgument("-ot '%s': the place is '%s', want cpu or gpuN", text, target);
  if (*worker >= num_workers)
    return InvalidArgument("-ot '%s': there are %d workers, gpu0 to gpu%d", text, num_workers, num_workers - 1);
  rule.worker = *worker;
  return rule;
}

// Null: none matches.
absl::StatusOr<const OverrideRule*> FirstMatch(const std::vector<OverrideRule>& rules, const std::string& tensor) {
  for (const OverrideRule& rule : rules) {
    const absl::StatusOr<bool> found = rule.pattern.Finds(tensor);
    if (!found.ok()) return Annotate(found.status(), absl::StrFormat("-ot '%s'", rule.text));
    if (*found) return &rule;
  }
  return static_cast<const OverrideRule*>(nullptr);
}

absl::StatusOr<std::vector<ExpertRule>> ApplyOverrides(const ModelConfig& config, const std::vector<OverrideRule>& rules,
                                                       const std::vector<WorkerPlacement>& workers) {
  std::vector<ExpertRule> result(config.num_layers, ExpertRule::kAny);
  for (size_t w = 0; w < workers.size(); ++w) {
    for (int64_t layer = workers[w].layers.first; layer < workers[w].layers.end; ++layer) {
      const std::string prefix = absl::StrFormat("blk.%d.ffn_", layer);
      ASSIGN_OR_RETURN(const OverrideRule* const gate, FirstMatch(rules, prefix + "gate_exps.weight"));
      for (const char* matrix : {"up", "down"}) {
        ASSIGN_OR_RETURN(const OverrideRule* const other, FirstMatch(rules, prefix + matrix + "_exps.weight"));
        const bool same = (gate == nullptr) == (other == nullptr) &&
                          (gate == nullptr || (gate->host == other->host && gate->worker == other->worker));
        if (!same) {
          return InvalidArgument(
              "-ot would put ffn_gate_exps and ffn_%s_exps of layer %d into different places: an expert is computed where all "
              "its matrices are, and every token would cross between them; name them together, as in 'ffn_.*_exps=cpu'",
              matrix, layer);
        }
      }
      if (gate == nullptr || !config.layers[layer].experts) continue;
      if (!gate->host && gate->worker != static_cast<int64_t>(w)) {
        return InvalidArgument("-ot '%s' puts experts of layer %d on gpu%d, but worker %d has that layer: move it with --layers",
                               gate->text, layer, gate->worker, w);
      }
      result[layer] = gate->host ? ExpertRule::kHost : ExpertRule::kDevice;
    }
    // Dense weights always lie with their layer's worker: a rule that says otherwise would be silently ignored.
    for (const DenseTensor& tensor : DenseTensorsOf(config, workers[w].layers.first, workers[w].layers.end)) {
      ASSIGN_OR_RETURN(const OverrideRule* const rule, FirstMatch(rules, tensor.name));
      if (rule != nullptr && (rule->host || rule->worker != static_cast<int64_t>(w))) {
        return InvalidArgument("-ot '%s' matches %s, but only experts can be moved: match 'ffn_.*_exps' alone", rule->text,
                               tensor.name);
      }
    }
  }
  return result;
}

absl::StatusOr<CacheShape> ShapeCache(const ModelConfig& config, const PlacementOptions& options) {
  const auto check = [](const char* flag, int64_t value, int64_t low, int64_t high) -> absl::Status {
    if (value >= low && value <= high) return absl::OkStatus();
    return InvalidArgument("%s is %d, want %d to %d", flag, value, low, high);
  };
  RETURN_IF_ERROR(check("-np", options.parallel, 1, kMaxParallel));
  RETURN_IF_ERROR(check("-b", options.batch_tokens, 0, kMaxBatchTokens));
  RETURN_IF_ERROR(check("-ub", options.micro_batch_tokens, 0, kMaxBatchTokens));
  RETURN_IF_ERROR(check("-c", options.context_tokens, 0, int64_t{1} << 30));
  for (const auto& [flag, type] : {std::pair("-ctk", options.key_type), std::pair("-ctv", options.value_type)}) {
    // F32 is for the reference kernels; the workers' own refuse it.
    if (type != DType::kF16 && type != DType::kQ8_0 && type != DType::kF32) {
      return InvalidArgument("%s is %s, want f16 or q8_0", flag, NameOf(type));
    }
    if (config.layers[0].attention.latent() && options.key_type != options.value_type) {
      return InvalidArgument("-ctk %s with -ctv %s: this model's keys and values are one latent, so they have one type",
                             NameOf(options.key_type), NameOf(options.value_type));
    }
    for (const LayerConfig& layer : config.layers) {
      if (layer.attention.delta()) continue;
      const int64_t head_dim = KvLayerOf(layer.attention, type, type, 1).head_dim;
      if (type == DType::kQ8_0 && head_dim % 32 != 0) {
        return InvalidArgument("%s q8_0 needs a head size that is a multiple of 32, this model's is %d", flag, head_dim);
      }
    }
  }

  const int64_t total = options.context_tokens > 0 ? options.context_tokens : DefaultContextTokens(config, options);
  CacheShape shape{.key_type = options.key_type, .value_type = options.value_type, .num_slots = options.parallel};
  shape.max_batch_tokens = options.batch_tokens > 0 ? options.batch_tokens : AutoBatchTokens(config, options.gpu_bytes, total);
  shape.max_batch_tokens = std::max(shape.max_batch_tokens, options.parallel);  // one decode row of each request fits a step
  shape.micro_batch_tokens = options.micro_batch_tokens > 0 ? options.micro_batch_tokens
                                                            : AutoMicroBatchTokens(config, options.gpu_bytes, options.parallel);
  shape.micro_batch_tokens = std::min(shape.micro_batch_tokens, shape.max_batch_tokens);
  shape.num_blocks = (total + kKvBlockTokens - 1) / kKvBlockTokens;
  shape.context_per_slot = std::min(config.context_length, total);
  shape.ring_blocks = (config.sliding_window() + shape.micro_batch_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  return shape;
}

// A state is as large as some thousand tokens in models with gated delta nets, so states get half of the memory there; otherwise
// a quarter. A state has a block for the tokens behind its last whole block.
void ShapeHostCache(const ModelConfig& config, int64_t bytes, CacheShape* shape) {
  int64_t block_bytes = 0, state_bytes = 0;
  const int64_t state_blocks = std::min(shape->ring_blocks, StateBlocks(config.sliding_window(), kKvBlockTokens));
  for (const LayerConfig& layer : config.layers) {
    const int64_t layer_bytes = KvLayerBytes(layer.attention, shape->key_type, shape->value_type, 1);
    state_bytes += DeltaStateBytes(layer.attention) + (layer.slides() ? layer_bytes * state_blocks : 0);
    block_bytes += layer.slides() ? 0 : layer_bytes;
  }
  const int64_t for_states = bytes / (config.keeps_states() ? 2 : 4);
  shape->num_host_states = std::min(kMaxHostStates, for_states / std::max<int64_t>(1, state_bytes + block_bytes));
  const int64_t for_blocks = bytes - shape->num_host_states * state_bytes;
  shape->num_host_blocks = std::min(kMaxHostBlocks, for_blocks / std::max<int64_t>(1, block_bytes));
}

int64_t KvBytes(const ModelConfig& config, const CacheShape& cache, const LayerRange& layers) {
  int64_t bytes = 0;
  for (int64_t layer = layers.first; layer < layers.end; ++layer) {
    const int64_t blocks = config.layers[layer].slides() ? cache.num_slots * cache.ring_blocks : cache.num_blocks;
    bytes += KvLayerBytes(config.layers[layer].attention, cache.key_type, cache.value_type, blocks);
    bytes += cache.num_slots * DeltaStateBytes(config.layers[layer].attention);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<ModelSizes> ModelSizesOf(const GgufFile& file, const ModelConfig& config) {
  ModelSizes sizes;
  sizes.dense_bytes.assign(config.num_layers, 0);
  for (const DenseTensor& tensor : DenseTensorsOf(config, 0, config.num_layers)) {
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(config, file, tensor));
    ASSIGN_OR_RETURN(const int64_t bytes, DenseBytes(config, tensor, info->dtype));
    if (tensor.layer >= 0) {
      sizes.dense_bytes[tensor.layer] += bytes;
    } else if (tensor.role == TensorRole::kTokenEmbedding) {
      sizes.embedding_bytes += bytes;
    } else {
      sizes.output_bytes += bytes;
    }
  }
  ASSIGN_OR_RETURN(const ArenaLayout arena, ArenaLayoutOf(file, config));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    sizes.expert_bytes.push_back(arena.layer(layer).bytes * arena.num_experts());
  }
  return sizes;
}

int64_t DefaultContextTokens(const ModelConfig& config, const PlacementOptions& options) {
  const int64_t least = std::min(config.context_length, kDefaultContextPerRequest) * options.parallel;
  if (options.gpu_bytes <= 0) return least;
  int64_t block_bytes = 0;
  for (const LayerConfig& layer : config.layers) {
    if (!layer.slides()) block_bytes += KvLayerBytes(layer.attention, options.key_type, options.value_type, 1);
  }
  const int64_t worker_bytes = std::max<int64_t>(1, block_bytes / options.num_workers);
  const int64_t fits = options.gpu_bytes / kContextShare / worker_bytes * kKvBlockTokens;
  return std::max(least, std::min(config.context_length, fits));
}

int64_t AutoBatchTokens(const ModelConfig& config, int64_t gpu_bytes, int64_t cache_tokens) {
  if (gpu_bytes <= 0) return kSmallestAutoBatch;
  // The residual in F32, its norm in 16 bits, and a contribution in 16 bits of each chosen expert (worker/stage.cc).
  const int64_t row_bytes = config.n_embd * (4 + 2 + 2 * config.router.top_k);
  int64_t rows = kLargestAutoBatch;
  while (rows > kSmallestAutoBatch && (rows * row_bytes > gpu_bytes / kActivationShare || rows / 2 >= cache_tokens)) rows /= 2;
  return rows;
}

int64_t AutoMicroBatchTokens(const ModelConfig& config, int64_t gpu_bytes, int64_t parallel) {
  if (gpu_bytes <= 0) return kSmallestAutoMicroBatch;
  // Queries, keys and values in F32, queries and what they attended to in 16 bits; and a row of the rings, in F16.
  AttentionWidths widths;
  int64_t rings = 0;
  for (const LayerConfig& layer : config.layers) {
    widths = Widest(widths, AttentionWidthsOf(layer.attention));
    if (layer.slides()) rings += parallel * 2 * layer.attention.kv_size() * 2;
  }
  const int64_t row_bytes = widths.projected * 4 + (widths.query + widths.latent + widths.attended) * 2 + rings;
  int64_t rows = kLargestAutoMicroBatch;
  while (rows > kSmallestAutoMicroBatch && rows * row_bytes > gpu_bytes / kMicroBatchShare) rows /= 2;
  return rows;
}

absl::StatusOr<Placement> PlanPlacement(const ModelConfig& config, const ModelSizes& sizes, const PlacementOptions& options) {
  if (options.num_workers < 1 || options.num_workers > config.num_layers) {
    return InvalidArgument("%d workers for a model of %d layers: want 1 to %d", options.num_workers, config.num_layers,
                           config.num_layers);
  }
  Placement placement;
  ASSIGN_OR_RETURN(placement.cache, ShapeCache(config, options));
  ShapeHostCache(config, options.cache_ram_bytes, &placement.cache);
  std::vector<LayerRange> ranges;
  if (options.layers.empty()) {
    ranges = EvenRanges(sizes, options.num_workers);
  } else {
    ASSIGN_OR_RETURN(ranges, ParseLayers(options.layers, options, config.num_layers));
  }
  for (const LayerRange& range : ranges) {
    WorkerPlacement worker{.layers = range};
    for (int64_t layer = range.first; layer < range.end; ++layer) worker.dense_bytes += sizes.dense_bytes[layer];
    if (range.first == 0) worker.dense_bytes += sizes.embedding_bytes;
    if (range.end == config.num_layers) worker.dense_bytes += sizes.output_bytes;
    worker.kv_bytes = KvBytes(config, placement.cache, range);
    placement.workers.push_back(worker);
  }
  std::vector<OverrideRule> rules;
  for (const std::string& text : options.tensor_overrides) {
    const std::vector<std::string> parts = absl::StrSplit(text, ',');  // as llama.cpp: several rules may share one -ot
    for (size_t i = 0; i < parts.size(); ++i) {
      std::string rule_text = parts[i];
      // A comma before the rule's "=" is one of its regular expression: x{1,2}=cpu.
      while (rule_text.find('=') == std::string::npos && i + 1 < parts.size()) rule_text += "," + parts[++i];
      ASSIGN_OR_RETURN(OverrideRule rule, ParseOverride(rule_text, options.num_workers));
      rules.push_back(std::move(rule));
    }
  }
  ASSIGN_OR_RETURN(placement.expert_rules, ApplyOverrides(config, rules, placement.workers));
  return placement;
}

}  // namespace ferry
