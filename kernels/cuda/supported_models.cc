#include "kernels/cuda/supported_models.h"

#include "common/model/tiled_layout.h"
#include "kernels/cuda/delta_net.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/routing.h"

namespace ferry::cuda {
namespace {

absl::Status CheckAttention(const ModelConfig& model, const AttentionConfig& attention) {
  if (attention.delta() && !DeltaNetSupportsHeadDim(attention.head_dim)) {
    return Unimplemented("%s has gated delta nets with heads of %d; CUDA takes 16, 32, 48, 64, 96, 128 and 256",
                         model.architecture, attention.head_dim);
  }
  if (!attention.latent()) return absl::OkStatus();
  // The types of the cache are checked with it.
  if (const char* lacks = LatentAttentionLacks(attention.latent_dim(), attention.kv_rank, DType::kF16); lacks != nullptr) {
    return Unimplemented("%s has latent attention with %d + %d numbers of a token; CUDA takes %s", model.architecture,
                         attention.kv_rank, attention.rope.num_dims, lacks);
  }
  for (const int64_t width : {attention.kv_rank, attention.nope_dim()}) {
    if (width % kTileCols == 0) continue;
    return Unimplemented("%s has latent attention with matrices of heads %d wide, CUDA takes multiples of %d", model.architecture,
                         width, kTileCols);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCudaModel(const ModelConfig& model) {
  if (model.router.num_groups > kMaxGroups) {
    return Unimplemented("the model's router has %d groups, CUDA takes up to %d", model.router.num_groups, kMaxGroups);
  }
  for (const LayerConfig& layer : model.layers) {
    RETURN_IF_ERROR(CheckAttention(model, layer.attention));
    if (!layer.experts || model.expert.n_ff % kTileCols == 0) continue;
    return Unimplemented("the model has experts %d wide, CUDA takes multiples of %d", model.expert.n_ff, kTileCols);
  }
  return absl::OkStatus();
}

}  // namespace ferry::cuda
