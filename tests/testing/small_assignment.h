#pragma once

// A model and a cache as a coordinator describes them to a worker, small and right.

#include <functional>
#include <string>

#include "common/gguf/gguf_writer.h"
#include "common/model/make_model.h"
#include "common/model/model_header.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// The header of a gpt-oss of these layers, changed by `change`: 8 experts of 64 x 64, two of each token, 4 heads of 32.
inline std::string SmallModelHeader(int num_layers, const std::function<void(GgufWriter&)>& change = nullptr) {
  GgufWriter writer = MakeModelWriter({.layers = num_layers, .expert_dtype = DType::kQ8_0}).value();
  if (change) change(writer);
  const std::vector<std::byte> bytes = writer.ToBytes();
  return ModelHeaderOf(GgufFile::Parse(bytes).value());
}

inline void DescribeSmallCache(internal::v1::CacheShape* cache) {
  cache->set_kv_type(1);
  cache->set_kv_value_type(8);
  cache->set_num_blocks(100);
  cache->set_num_slots(4);
  cache->set_ring_blocks(20);
  cache->set_max_batch_tokens(2048);
  cache->set_micro_batch_tokens(512);
}

}  // namespace ferry
