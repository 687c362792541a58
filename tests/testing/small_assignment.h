#pragma once

// A model and a cache as a coordinator describes them to a worker, small and right.

#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

inline void DescribeSmallModel(int num_layers, internal::v1::ModelShape* model) {
  model->set_architecture("gpt-oss");
  model->set_num_layers(num_layers);
  model->set_context_length(4096);
  model->set_n_embd(64);
  model->set_vocab_size(512);
  model->set_num_heads(4);
  model->set_num_kv_heads(2);
  model->set_head_dim(32);
  model->set_num_experts(8);
  model->set_top_k(2);
  model->set_n_ff(64);
  model->set_sliding_window(128);
  model->set_rms_epsilon(1e-5);
  model->set_swiglu_alpha(1.702);
  model->set_swiglu_limit(7);
  model->set_rope_freq_base(150000);
  model->set_rope_num_dims(32);
  model->set_expert_bias(true);
  for (int i = 0; i < num_layers; ++i) {
    model->add_gate_types(39);
    model->add_up_types(39);
    model->add_down_types(8);
  }
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
