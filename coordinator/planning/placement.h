#pragma once

// Placement of a model: the workers' layer ranges and the shape of the KV cache. Pure functions of sizes and options, for the
// coordinator at its start and for `ferry plan` without loading.

#include <cstdint>
#include <string>
#include <vector>

#include "common/expert_plan.h"
#include "common/gguf/gguf.h"
#include "common/model/dtype.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

struct PlacementOptions {
  int64_t num_workers = 1;
  std::string layers;  // --layers "0-9,10-23": one range a worker, both ends included; empty: even by bytes
  std::vector<std::string> tensor_overrides;  // -ot REGEX=cpu|gpuN, first match wins; CUDAN is gpuN
  int64_t context_tokens = 0;                 // -c: KV cache of all requests together; 0: DefaultContextTokens
  int64_t parallel = 4;                       // -np: requests at once
  int64_t batch_tokens = 0;                   // -b: rows of one step; 0: AutoBatchTokens
  int64_t gpu_bytes = 0;                      // memory of the smallest GPU among the workers; 0: no GPUs, or unknown
  int64_t micro_batch_tokens = 0;             // -ub: rows of one dense or attention chunk; 0: AutoMicroBatchTokens
  DType key_type = DType::kF16;               // -ctk: F16 or Q8_0
  DType value_type = DType::kF16;             // -ctv
  int64_t cache_ram_bytes = 0;                // --cache-ram: host memory of all workers for the KV cache
};

struct CacheShape {
  DType key_type = DType::kF16, value_type = DType::kF16;
  int64_t num_blocks = 0;  // of a full layer
  int64_t num_slots = 0;
  int64_t ring_blocks = 0;  // of one slot in a sliding layer: the window and one micro-batch
  int64_t max_batch_tokens = 0;
  int64_t micro_batch_tokens = 0;
  int64_t context_per_slot = 0;  // tokens of one request
  int64_t num_host_blocks = 0;   // blocks of all full layers, in the workers' host memory
  int64_t num_host_states = 0;   // states of slots there (common/cache_move.h); without states, tails of sequences
};

struct LayerRange {
  int64_t first = 0, end = 0;
  bool operator==(const LayerRange&) const = default;
};

struct WorkerPlacement {
  LayerRange layers;
  int64_t dense_bytes = 0;  // weights on the worker
  int64_t kv_bytes = 0;
};

struct Placement {
  std::vector<WorkerPlacement> workers;
  std::vector<ExpertRule> expert_rules;  // one a layer
  CacheShape cache;
};

// Bytes of a model's parts in memory (tiled, padded).
struct ModelSizes {
  std::vector<int64_t> dense_bytes;   // a layer: attention, norms, router
  std::vector<int64_t> expert_bytes;  // a layer: all its experts
  int64_t embedding_bytes = 0;        // before the first layer
  int64_t output_bytes = 0;           // behind the last: norm and matrix
};
// Errors name a tensor, as ExpertTensorsOf and FindDense.
absl::StatusOr<ModelSizes> ModelSizesOf(const GgufFile& file, const ModelConfig& config);

// The default of -c: min(model, 4096) for each of options.parallel. With GPUs it is the model's whole context when that is more,
// as far as the full layers of a worker take at most a sixteenth of its GPU: the rest is worth more to experts.
int64_t DefaultContextTokens(const ModelConfig& config, const PlacementOptions& options);

// The default of -b. An expert crosses a GPU's link once a step, so longer steps ship less: with GPUs, the largest power of two
// up to 16,384 whose activations take at most a sixteenth of `gpu_bytes`, and at least 2048. Without GPUs 2048, since the host's
// kernels reach their peak with far fewer rows an expert. Never more than `cache_tokens`, which no step exceeds.
int64_t AutoBatchTokens(const ModelConfig& config, int64_t gpu_bytes, int64_t cache_tokens);

// The default of -ub. A GPU's dense products of 512 rows reach three quarters of their rate with 4,096 (docs/tried.md), but
// buffers and the rings of sliding layers grow with the rows. So: the largest power of two up to 4,096 whose buffers and rings
// take at most a sixty-fourth of `gpu_bytes`, and at least 512; 512 without GPUs.
int64_t AutoMicroBatchTokens(const ModelConfig& config, int64_t gpu_bytes, int64_t parallel);

// InvalidArgument: ranges that overlap or leave layers out, more workers than layers, a rule that would split the matrices of
// one expert between devices (with the advice to name all of ffn_.*_exps), a cache too small for one request.
absl::StatusOr<Placement> PlanPlacement(const ModelConfig& config, const ModelSizes& sizes, const PlacementOptions& options);

}  // namespace ferry
