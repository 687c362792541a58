#pragma once

// The dense weights of a stage in device memory: everything but the experts.
//
// They arrive as chunks of rows in the model file's format. The loader tiles each chunk and uploads it, so that the host holds a
// few MiB of a matrix at a time. The exception is queries, keys and values of a layer, which it collects into one matrix.

#include <cstdint>
#include <memory>
#include <vector>

#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/dense_chunk.h"

namespace ferry {

// A weight matrix and its bias in device memory.
struct Projection {
  TiledMatrix weight;
  const float* bias = nullptr;  // null: none
};

// Of latent attention.
struct LatentWeights {
  TiledMatrix query_down;             // [q_rank, n_embd], where queries are made in two steps
  const float* query_norm = nullptr;  // [q_rank]
  TiledMatrix query;                  // [q, q_rank or n_embd]
  TiledMatrix down;                   // [kv_rank + rotated, n_embd]
  const float* norm = nullptr;        // [kv_rank]
  HeadMatrices key_up;                // of a head [kv_rank, nope]
  HeadMatrices value_up;              // of a head [value_dim, kv_rank]
};

// Of a gated delta net. Whatever the file's order, value heads come one after the other, and so do queries and keys of key heads.
struct DeltaLayerWeights {
  TiledMatrix mixed;                 // [conv_channels, n_embd]
  TiledMatrix gate;                  // [heads * head_dim, n_embd]
  TiledMatrix beta, alpha;           // [heads, n_embd]
  const float* conv = nullptr;       // [conv_taps, conv_channels]
  const float* time_bias = nullptr;  // [heads]
  const float* decay = nullptr;      // [heads]
  const float* norm = nullptr;       // [head_dim]
};

struct LayerWeights {
  const float* attention_norm = nullptr;
  LatentWeights latent;
  DeltaLayerWeights delta;
  std::vector<Projection> qkv;        // one of [q + 2 kv, n_embd], or three where the types of q, k and v differ
  const float* query_norm = nullptr;  // head norms; null: none
  const float* key_norm = nullptr;
  TiledMatrix output_gate;  // [q, n_embd], of attention whose output is gated
  Projection attention_output;
  const float* sinks = nullptr;  // null: none
  const float* ffn_norm = nullptr;
  TiledMatrix mlp_gate, mlp_up, mlp_down;  // of a layer with an MLP
  TiledMatrix mlp_output_gate;             // [1, n_embd], of an MLP that is gated
  RouterWeights router;                    // of a layer with experts
};

class StageWeights {
 public:
  // Reads everything that DenseTensorsOf lists for layers [first_layer, end_layer). InvalidArgument names a tensor that is
  // missing, out of order, of another shape or type; ResourceExhausted: the device is full. The buffers belong to `ops`,
  // which must outlive this.
  static absl::StatusOr<std::unique_ptr<StageWeights>> Load(Ops* ops, const ModelConfig& model, int64_t first_layer,
                                                            int64_t end_layer, DenseTensorSource& source);

  const LayerWeights& layer(int64_t layer) const { return layers_[layer - first_layer_]; }
  const TiledMatrix& embedding() const { return embedding_; }  // first stage
  const float* output_norm() const { return output_norm_; }    // last stage
  const TiledMatrix& output() const { return output_; }        // last stage
  int64_t bytes() const { return bytes_; }                     // of device memory

 private:
  class Loader;
  StageWeights() = default;

  int64_t first_layer_ = 0;
  std::vector<LayerWeights> layers_;
  TiledMatrix embedding_, output_;
  const float* output_norm_ = nullptr;
  std::vector<DeviceBuffer> buffers_;
  int64_t bytes_ = 0;
};

}  // namespace ferry
