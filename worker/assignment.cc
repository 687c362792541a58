#include "worker/assignment.h"

#include <algorithm>
#include <span>
#include <utility>

#include "common/model/model_header.h"

namespace ferry {
namespace {

absl::Status CheckRange(const char* field, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();  // NaN fails
  return InvalidArgument("%s is %g, want %g to %g", field, value, min, max);
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
  RETURN_IF_ERROR(CheckRange("cache.num_host_blocks", cache.num_host_blocks(), 0, INT32_MAX));
  RETURN_IF_ERROR(CheckRange("cache.num_host_states", cache.num_host_states(), 0, 1 << 20));
  RETURN_IF_ERROR(CheckRange("cache.max_batch_tokens", cache.max_batch_tokens(), 1, 1 << 22));
  RETURN_IF_ERROR(CheckRange("cache.micro_batch_tokens", cache.micro_batch_tokens(), 1, 1 << 22));
  // Bytes of a layer's planes in F32, full or ring: ten terabytes are more than any device has, and add up over 1024 layers.
  const double blocks =
      std::max<double>({static_cast<double>(cache.num_blocks()), static_cast<double>(cache.num_host_blocks()),
                        static_cast<double>(cache.ring_blocks()) * std::max(cache.num_slots(), cache.num_host_states())});
  for (const LayerConfig& layer : model.layers) {
    const auto block_bytes = static_cast<double>(KvLayerBytes(layer.attention, DType::kF32, DType::kF32, 1));
    RETURN_IF_ERROR(CheckRange("cache.num_blocks * the model's heads", blocks * block_bytes, 0, 1e13));
    const double states = static_cast<double>(std::max(cache.num_slots(), cache.num_host_states())) *
                          static_cast<double>(DeltaStateBytes(layer.attention));
    RETURN_IF_ERROR(CheckRange("cache.num_slots * the model's states", states, 0, 1e13));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ExpertRule>> RulesFromProto(const internal::v1::RegisterResponse& response) {
  std::vector<ExpertRule> rules(response.end_layer() - response.first_layer(), ExpertRule::kAny);
  for (const internal::v1::ExpertOverride& rule : response.overrides()) {
    if (rule.layer() < response.first_layer() || rule.layer() >= response.end_layer()) {
      return InvalidArgument("overrides.layer is %d, want %d to %d", rule.layer(), response.first_layer(),
                             response.end_layer() - 1);
    }
    ExpertRule& out = rules[rule.layer() - response.first_layer()];
    switch (rule.place()) {
      case internal::v1::ExpertOverride::ANY:
        out = ExpertRule::kAny;
        break;
      case internal::v1::ExpertOverride::HOST:
        out = ExpertRule::kHost;
        break;
      case internal::v1::ExpertOverride::DEVICE:
        out = ExpertRule::kDevice;
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
  ASSIGN_OR_RETURN(ModelDescription model, ModelFromHeader(std::as_bytes(std::span(response.model()))));
  assignment.model = std::move(model.config);
  assignment.arena = std::move(model.arena);
  RETURN_IF_ERROR(CheckCache(response.cache(), assignment.model));
  RETURN_IF_ERROR(CheckRange("num_workers", response.num_workers(), 1, 4096));
  RETURN_IF_ERROR(CheckRange("worker_id", response.worker_id(), 0, response.num_workers() - 1.0));
  RETURN_IF_ERROR(CheckRange("end_layer", response.end_layer(), 1, static_cast<double>(assignment.model.num_layers)));
  RETURN_IF_ERROR(CheckRange("first_layer", response.first_layer(), 0, response.end_layer() - 1.0));
  ASSIGN_OR_RETURN(assignment.rules, RulesFromProto(response));
  RETURN_IF_ERROR(CheckRange("heartbeat_interval_seconds", response.heartbeat_interval_seconds(), 0.001, 3600));
  RETURN_IF_ERROR(CheckRange("heartbeat_timeout_seconds", response.heartbeat_timeout_seconds(),
                             response.heartbeat_interval_seconds(), 36000));
  const std::string& transport = response.expert_transport();
  if (transport != "shm" && transport != "tcp" && transport != "grpc") {
    return Unimplemented("expert_transport is '%s', want shm, tcp or grpc", transport);
  }
  RETURN_IF_ERROR(CheckRange("expert_port", response.expert_port(), 0, 65535));
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
                   .ring_blocks = response.cache().ring_blocks(),
                   .num_host_blocks = response.cache().num_host_blocks(),
                   .num_host_states = response.cache().num_host_states()};
  assignment.max_rows = response.cache().max_batch_tokens();
  assignment.micro_batch_rows = response.cache().micro_batch_tokens();
  assignment.expert_transport = transport;
  assignment.expert_socket = response.expert_socket();
  assignment.expert_port = static_cast<int>(response.expert_port());
  assignment.descriptor_socket = response.descriptor_socket();
  assignment.descriptor_key = response.descriptor_key();
  assignment.mailbox = {.n_embd = assignment.model.n_embd,
                        .max_rows = static_cast<int64_t>(response.mailbox_max_rows()),
                        .max_entries = static_cast<int64_t>(response.mailbox_max_entries()),
                        .max_experts = assignment.model.router.num_experts};
  assignment.heartbeat_interval = absl::Seconds(response.heartbeat_interval_seconds());
  assignment.heartbeat_timeout = absl::Seconds(response.heartbeat_timeout_seconds());
  assignment.ooae = response.ooae();
  assignment.may_help = response.may_help();
  assignment.model_fingerprint = response.model_fingerprint();
  assignment.dense_bytes = static_cast<int64_t>(response.dense_bytes());
  return assignment;
}

}  // namespace ferry
