#pragma once

// The rows that go through a model together, and the block KV cache in which their sequences keep keys and values.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/model/dtype.h"
#include "common/model/model_config.h"
#include "kernels/gated_delta.h"

namespace ferry {

// The block KV cache of one layer. Its keys, and likewise its values, are [block][kv_head][token of the block][head_dim]; a
// Q8_0 plane has int8 codes in that order, then f16 scales [block][kv_head][token][head_dim / 32]. Position p of a sequence is
// token p % kKvBlockTokens of block table[(p / kKvBlockTokens) % table size]. A table shorter than the sequence is therefore a
// ring; a sliding layer uses one to hold its window and nothing else.
inline constexpr int64_t kKvBlockTokens = 32;

struct KvLayer {
  std::byte* keys = nullptr;       // KvPlaneBytes(key_type, ...)
  std::byte* values = nullptr;     // KvPlaneBytes(value_type, ...)
  DType key_type = DType::kF16;    // F16 or Q8_0; the reference backend also takes F32
  DType value_type = DType::kF16;  // likewise; CUDA wants the keys' type
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0, head_dim = 0;
  // Above 0: a latent cache. Its values are the first so many numbers of its keys, and it has no plane of values.
  int64_t latent_values = 0;
  bool ring = false;  // the block table is BatchSequence::ring_blocks
};
int64_t KvPlaneBytes(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim);
// A layer's cache without its planes, and what both of them take.
KvLayer KvLayerOf(const AttentionConfig& attention, DType key_type, DType value_type, int64_t num_blocks);
// 0 of a gated delta net, which has states instead.
int64_t KvLayerBytes(const AttentionConfig& attention, DType key_type, DType value_type, int64_t num_blocks);
// What a gated delta net keeps of each slot (kernels/gated_delta.h); 0 of other layers.
int64_t DeltaStateNumbers(const AttentionConfig& attention);
inline int64_t DeltaStateBytes(const AttentionConfig& attention) {
  return DeltaStateNumbers(attention) * static_cast<int64_t>(sizeof(float));
}

// What attention computes beside its shapes.
struct AttentionParams {
  double scale = 1;              // of scores
  int64_t window = 0;            // above 0: a row at p sees positions > p - window
  const float* sinks = nullptr;  // F32 [heads], which join the softmax's denominator; null: none
};

// The stored vector of latent attention: RMSNorm of a token's latent vector, F32 [kv_rank].
struct LatentNorm {
  const float* weight = nullptr;
  double epsilon = 0;
};

// RMSNorm of each head of queries and keys before the rotation. F32 [head_dim], both or none.
struct HeadNorms {
  const float* query = nullptr;
  const float* key = nullptr;
  double epsilon = 0;
};

// The rows of one sequence in a batch, at positions [first_position, first_position + num_rows).
struct BatchSequence {
  int64_t first_row = 0;  // in the batch
  int64_t num_rows = 0;
  int64_t first_position = 0;
  std::vector<int32_t> blocks;       // block table of full layers: at least ceil(end position / kKvBlockTokens) blocks
  std::vector<int32_t> ring_blocks;  // block table of sliding layers
  int32_t slot = 0;                  // of the states of gated delta nets
};

struct Batch {
  std::vector<int32_t> token_ids;        // one a row; empty when the stage has no embedding
  std::vector<BatchSequence> sequences;  // in order of rows, without gaps
  int64_t num_rows() const { return sequences.empty() ? 0 : sequences.back().first_row + sequences.back().num_rows; }
};

// A batch and the copies of it in device memory, made by PrepareBatch.
class DeviceBatch {
 public:
  virtual ~DeviceBatch() = default;
  const Batch& host() const { return host_; }

 protected:
  explicit DeviceBatch(Batch host) : host_(std::move(host)) {}
  const Batch host_;
};

}  // namespace ferry
