#include "kernels/kv_cache_format.h"

namespace ferry {

int64_t KvPlaneBytes(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim) {
  const int64_t numbers = num_blocks * num_kv_heads * kKvBlockTokens * head_dim;
  switch (dtype) {
    case DType::kF32:
      return numbers * 4;
    case DType::kQ8_0:
      return numbers + numbers / kKvQuantBlock * 2;
    default:
      return numbers * 2;
  }
}

KvLayer KvLayerOf(const AttentionConfig& attention, DType key_type, DType value_type, int64_t num_blocks) {
  KvLayer layer = {.key_type = key_type,
                   .value_type = value_type,
                   .num_blocks = num_blocks,
                   .num_kv_heads = attention.num_kv_heads,
                   .head_dim = attention.head_dim,
                   .ring = attention.window > 0};
  if (attention.latent()) layer.head_dim = attention.latent_dim(), layer.latent_values = attention.kv_rank;
  return layer;
}

int64_t KvLayerBytes(const AttentionConfig& attention, DType key_type, DType value_type, int64_t num_blocks) {
  if (attention.delta()) return 0;
  const KvLayer layer = KvLayerOf(attention, key_type, value_type, num_blocks);
  const int64_t keys = KvPlaneBytes(key_type, num_blocks, layer.num_kv_heads, layer.head_dim);
  return layer.latent_values > 0 ? keys : keys + KvPlaneBytes(value_type, num_blocks, layer.num_kv_heads, layer.head_dim);
}

int64_t DeltaStateNumbers(const AttentionConfig& attention) {
  if (!attention.delta()) return 0;
  return (attention.conv_taps - 1) * attention.conv_channels() + attention.q_size() * attention.head_dim;
}

}  // namespace ferry
