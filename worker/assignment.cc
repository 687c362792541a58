#include "worker/assignment.h"

#include <algorithm>
#include <utility>

namespace ferry {
namespace {

absl::Status CheckRange(const char* field, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();  // NaN fails
  return InvalidArgument("%s is %g, want %g to %g", field, value, min, max);
}

absl::StatusOr<ModelConfig> ModelFromProto(const internal::v1::ModelShape& shape) {
  constexpr double kMaxDimension = 1 << 24;
  if (shape.architecture() != "gpt-oss") {
    return Unimplemented("model.architecture is '%s'; this worker runs gpt-oss", shape.architecture());
  }
  RETURN_IF_ERROR(CheckRange("model.num_layers", shape.num_layers(), 1, 1024));
  RETURN_IF_ERROR(CheckRange("model.context_length", static_cast<double>(shape.context_length()), 1, INT32_MAX));
  RETURN_IF_ERROR(CheckRange("model.n_embd", shape.n_embd(), 1, kMaxDimension));
  RETURN_IF_ERROR(CheckRange("model.vocab_size", shape.vocab_size(), 1, kMaxDimension));
  RETURN_IF_ERROR(CheckRange("model.num_kv_heads", shape.num_kv_heads(), 1, 4096));
  RETURN_IF_ERROR(CheckRange("model.num_heads", shape.num_heads(), shape.num_kv_heads(), 4096));
  if (shape.num_heads() % shape.num_kv_heads() != 0) {
    return InvalidArgument("model.num_heads is %d, want a multiple of num_kv_heads, %d", shape.num_heads(), shape.num_kv_heads());
  }
  RETURN_IF_ERROR(CheckRange("model.head_dim", shape.head_dim(), 2, 4096));
  RETURN_IF_ERROR(CheckRange("model.num_experts", shape.num_experts(), 1, 1024));
  RETURN_IF_ERROR(CheckRange("model.top_k", shape.top_k(), 1, shape.num_experts()));
  RETURN_IF_ERROR(CheckRange("model.n_ff", shape.n_ff(), 1, kMaxDimension));
  RETURN_IF_ERROR(CheckRange("model.sliding_window", shape.sliding_window(), 0, kMaxDimension));
  RETURN_IF_ERROR(CheckRange("model.rms_epsilon", shape.rms_epsilon(), 0, 1));
  RETURN_IF_ERROR(CheckRange("model.rope_num_dims", shape.rope_num_dims(), 0, shape.head_dim()));
  RETURN_IF_ERROR(CheckRange("model.rope_freq_base", shape.rope_freq_base(), 1e-3, 1e12));
  for (const auto& [field, value] :
       {std::pair{"model.swiglu_alpha", shape.swiglu_alpha()}, std::pair{"model.swiglu_limit", shape.swiglu_limit()},
        std::pair{"model.yarn_factor", shape.yarn_factor()}, std::pair{"model.yarn_beta_fast", shape.yarn_beta_fast()},
        std::pair{"model.yarn_beta_slow", shape.yarn_beta_slow()},
        std::pair{"model.rope_attention_factor", shape.rope_attention_factor()}}) {
    RETURN_IF_ERROR(CheckRange(field, value, 0, 1e6));
  }
  for (const auto& [field, types] :
       {std::pair{"model.gate_types", &shape.gate_types()}, std::pair{"model.up_types", &shape.up_types()},
        std::pair{"model.down_types", &shape.down_types()}}) {
    if (types->size() != static_cast<int64_t>(shape.num_layers())) {
      return InvalidArgument("%s has %d entries, want one a layer, %d", field, types->size(), shape.num_layers());
    }
  }
  ModelConfig model;
  model.architecture = shape.architecture();
  model.num_layers = shape.num_layers();
  model.context_length = static_cast<int64_t>(shape.context_length());
  model.n_embd = shape.n_embd();
  model.vocab_size = shape.vocab_size();
  model.num_heads = shape.num_heads();
  model.num_kv_heads = shape.num_kv_heads();
  model.head_dim = shape.head_dim();
  model.num_experts = shape.num_experts();
  model.top_k = shape.top_k();
  model.n_ff = shape.n_ff();
  model.sliding_window = shape.sliding_window();
  model.rms_epsilon = shape.rms_epsilon();
  model.swiglu_alpha = shape.swiglu_alpha();
  model.swiglu_limit = shape.swiglu_limit();
  model.rope = {.freq_base = shape.rope_freq_base(),
                .num_dims = shape.rope_num_dims(),
                .yarn_factor = shape.yarn_factor(),
                .yarn_original_context = shape.yarn_original_context(),
                .yarn_beta_fast = shape.yarn_beta_fast(),
                .yarn_beta_slow = shape.yarn_beta_slow(),
                .attention_factor = shape.rope_attention_factor()};
  return model;
}

absl::StatusOr<ArenaLayout> ArenaFromProto(const internal::v1::ModelShape& shape) {
  std::vector<ExpertLayout> layers;
  for (uint32_t i = 0; i < shape.num_layers(); ++i) {
    ASSIGN_OR_RETURN(
        ExpertLayout layer,
        ExpertLayout::Create(static_cast<DType>(shape.gate_types(i)), static_cast<DType>(shape.up_types(i)),
                             static_cast<DType>(shape.down_types(i)), shape.n_embd(), shape.n_ff(), shape.expert_bias()));
    layers.push_back(layer);
  }
  return ArenaLayout::Create(std::move(layers), shape.num_experts());
}

absl::Status CheckCache(const internal::v1::CacheShape& cache, const ModelConfig& model) {
  for (const auto& [field, type] :
       {std::pair{"cache.kv_type", cache.kv_type()}, std::pair{"cache.kv_value_type", cache.kv_value_type()}}) {
    const DType dtype = static_cast<DType>(type);
    if (dtype != DType::kF16 && dtype != DType::kQ8_0 && dtype != DType::kF32) {
      return Unimplemented("%s is %s, want F16, Q8_0 or, for the reference kernels, F32", field, NameOf(dtype));
    }
  }
  RETURN_IF_ERROR(CheckRange("cache.num_blocks", cache.num_blocks(), 1, INT32_MAX));
  RETURN_IF_ERROR(CheckRange("cache.num_slots", cache.num_slots(), 1, 65536));
  RETURN_IF_ERROR(CheckRange("cache.ring_blocks", cache.ring_blocks(), 0, 1 << 20));
  RETURN_IF_ERROR(
      CheckRange("cache.ring_blocks * num_slots", static_cast<double>(cache.ring_blocks()) * cache.num_slots(), 0, INT32_MAX));
  RETURN_IF_ERROR(CheckRange("cache.max_batch_tokens", cache.max_batch_tokens(), 1, 1 << 22));
  RETURN_IF_ERROR(CheckRange("cache.micro_batch_tokens", cache.micro_batch_tokens(), 1, 1 << 22));
  // Bytes of a layer's planes in F32, full or ring: ten terabytes are more than any device has, and add up over 1024 layers.
  const double blocks = std::max<double>(cache.num_blocks(), static_cast<double>(cache.ring_blocks()) * cache.num_slots());
  return CheckRange("cache.num_blocks * the model's heads", blocks * static_cast<double>(kKvBlockTokens * model.kv_size()) * 8, 0,
                    1e13);
}

absl::StatusOr<std::vector<LayerRule>> RulesFromProto(const internal::v1::RegisterResponse& response) {
  std::vector<LayerRule> rules(response.end_layer() - response.first_layer(), LayerRule::kAny);
  for (const internal::v1::ExpertOverride& rule : response.overrides()) {
    if (rule.layer() < response.first_layer() || rule.layer() >= response.end_layer()) {
      return InvalidArgument("overrides.layer is %d, want %d to %d", rule.layer(), response.first_layer(),
                             response.end_layer() - 1);
    }
    LayerRule& out = rules[rule.layer() - response.first_layer()];
    switch (rule.place()) {
      case internal::v1::ExpertOverride::ANY:
        out = LayerRule::kAny;
        break;
      case internal::v1::ExpertOverride::HOST:
        out = LayerRule::kHost;
        break;
      case internal::v1::ExpertOverride::DEVICE:
        out = LayerRule::kDevice;
        break;
      default:
        return InvalidArgument("overrides.place is %d, which is none", static_cast<int>(rule.place()));
    }
  }
  return rules;
}

}  // namespace

absl::StatusOr<Assignment> AssignmentFromProto(const internal::v1::RegisterResponse& response) {
  Assignment assignment;
  ASSIGN_OR_RETURN(assignment.model, ModelFromProto(response.model()));
  ASSIGN_OR_RETURN(assignment.arena, ArenaFromProto(response.model()));
  RETURN_IF_ERROR(CheckCache(response.cache(), assignment.model));
  RETURN_IF_ERROR(CheckRange("num_workers", response.num_workers(), 1, 4096));
  RETURN_IF_ERROR(CheckRange("worker_id", response.worker_id(), 0, response.num_workers() - 1.0));
  RETURN_IF_ERROR(CheckRange("end_layer", response.end_layer(), 1, static_cast<double>(assignment.model.num_layers)));
  RETURN_IF_ERROR(CheckRange("first_layer", response.first_layer(), 0, response.end_layer() - 1.0));
  ASSIGN_OR_RETURN(assignment.rules, RulesFromProto(response));
  RETURN_IF_ERROR(CheckRange("heartbeat_interval_seconds", response.heartbeat_interval_seconds(), 0.001, 3600));
  RETURN_IF_ERROR(CheckRange("heartbeat_timeout_seconds", response.heartbeat_timeout_seconds(),
                             response.heartbeat_interval_seconds(), 36000));
  if (response.expert_transport() != "shm" && response.expert_transport() != "grpc") {
    return Unimplemented("expert_transport is '%s', want shm or grpc", response.expert_transport());
  }
  // 0 without a mailbox; within these the sizes of one can be reckoned with (common/shm/expert_mailbox.cc has the same limits).
  RETURN_IF_ERROR(CheckRange("mailbox_max_rows", static_cast<double>(response.mailbox_max_rows()), 0, 1 << 24));
  RETURN_IF_ERROR(CheckRange("mailbox_max_entries", static_cast<double>(response.mailbox_max_entries()), 0, 1 << 26));
  RETURN_IF_ERROR(CheckRange("dense_bytes", static_cast<double>(response.dense_bytes()), 0, 1e15));
  assignment.worker_id = response.worker_id();
  assignment.num_workers = response.num_workers();
  assignment.first_layer = response.first_layer();
  assignment.end_layer = response.end_layer();
  assignment.kv = {.key_type = static_cast<DType>(response.cache().kv_type()),
                   .value_type = static_cast<DType>(response.cache().kv_value_type()),
                   .num_blocks = response.cache().num_blocks(),
                   .num_slots = response.cache().num_slots(),
                   .ring_blocks = response.cache().ring_blocks()};
  assignment.max_rows = response.cache().max_batch_tokens();
  assignment.micro_batch_rows = response.cache().micro_batch_tokens();
  assignment.expert_transport = response.expert_transport();
  assignment.descriptor_socket = response.descriptor_socket();
  assignment.descriptor_key = response.descriptor_key();
  assignment.mailbox = {.n_embd = assignment.model.n_embd,
                        .max_rows = static_cast<int64_t>(response.mailbox_max_rows()),
                        .max_entries = static_cast<int64_t>(response.mailbox_max_entries()),
                        .max_experts = assignment.model.num_experts};
  assignment.heartbeat_interval = absl::Seconds(response.heartbeat_interval_seconds());
  assignment.heartbeat_timeout = absl::Seconds(response.heartbeat_timeout_seconds());
  assignment.ooae = response.ooae();
  assignment.model_fingerprint = response.model_fingerprint();
  assignment.dense_bytes = static_cast<int64_t>(response.dense_bytes());
  return assignment;
}

}  // namespace ferry
