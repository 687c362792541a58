#include "worker/kv_cache.h"

#include <numeric>
#include <utility>

namespace ferry {
namespace {

int64_t BlocksOf(const ModelConfig& model, int64_t layer, const KvCacheShape& shape) {
  return model.layers[layer].slides() ? shape.num_slots * shape.ring_blocks : shape.num_blocks;
}

}  // namespace

int64_t KvCache::BytesOf(const ModelConfig& model, int64_t first_layer, int64_t end_layer, const KvCacheShape& shape) {
  int64_t bytes = 0;
  for (int64_t layer = first_layer; layer < end_layer; ++layer) {
    const int64_t blocks = BlocksOf(model, layer, shape);
    bytes += KvLayerBytes(model.layers[layer].attention, shape.key_type, shape.value_type, blocks);
    bytes += shape.num_slots * DeltaStateBytes(model.layers[layer].attention);
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(Ops* ops, const ModelConfig& model, int64_t first_layer,
                                                         int64_t end_layer, const KvCacheShape& shape, int64_t micro_batch_rows) {
  if (shape.num_blocks < 1 || shape.num_slots < 1) {
    return InvalidArgument("the KV cache has %d blocks and %d slots, want at least one of each", shape.num_blocks,
                           shape.num_slots);
  }
  const int64_t window = model.sliding_window();
  if (window > 0 && shape.ring_blocks * kKvBlockTokens < window + micro_batch_rows) {
    return InvalidArgument("ring_blocks is %d, want at least %d: a window of %d and a micro-batch of %d in blocks of %d",
                           shape.ring_blocks, (window + micro_batch_rows + kKvBlockTokens - 1) / kKvBlockTokens, window,
                           micro_batch_rows, kKvBlockTokens);
  }
  std::unique_ptr<KvCache> cache(new KvCache);
  cache->first_layer_ = first_layer;
  cache->ring_blocks_ = window > 0 ? shape.ring_blocks : 0;
  for (int64_t layer = first_layer; layer < end_layer; ++layer) {
    DeltaStates& states = cache->states_.emplace_back();
    if (model.layers[layer].attention.delta()) {
      const int64_t bytes = shape.num_slots * DeltaStateBytes(model.layers[layer].attention);
      ASSIGN_OR_RETURN(DeviceBuffer buffer, ops->Allocate(bytes));
      states = {.data = buffer.as<float>(), .num_slots = shape.num_slots};
      cache->layers_.emplace_back();
      cache->bytes_ += bytes;
      cache->buffers_.push_back(std::move(buffer));
      continue;
    }
    const int64_t blocks = BlocksOf(model, layer, shape);
    KvLayer planes = KvLayerOf(model.layers[layer].attention, shape.key_type, shape.value_type, blocks);
    RETURN_IF_ERROR(Annotate(ops->CheckKvCache(planes), "KV cache"));
    const int64_t key_bytes = KvPlaneBytes(shape.key_type, blocks, planes.num_kv_heads, planes.head_dim);
    const int64_t value_bytes =
        planes.latent_values > 0 ? 0 : KvPlaneBytes(shape.value_type, blocks, planes.num_kv_heads, planes.head_dim);
    ASSIGN_OR_RETURN(DeviceBuffer keys, ops->Allocate(key_bytes));
    ASSIGN_OR_RETURN(DeviceBuffer values, ops->Allocate(value_bytes));
    planes.keys = keys.data();
    planes.values = values.data();
    cache->layers_.push_back(planes);
    cache->bytes_ += key_bytes + value_bytes;
    cache->buffers_.push_back(std::move(keys));
    cache->buffers_.push_back(std::move(values));
  }
  return cache;
}

std::vector<int32_t> KvCache::RingOf(int32_t slot) const {
  std::vector<int32_t> blocks(ring_blocks_);
  std::iota(blocks.begin(), blocks.end(), static_cast<int32_t>(slot * ring_blocks_));
  return blocks;
}

}  // namespace ferry
