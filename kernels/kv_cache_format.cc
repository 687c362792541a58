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

}  // namespace ferry
