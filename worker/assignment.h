#pragma once

// A worker's place in the cluster: the checked form of the coordinator's answer to Register.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/expert_plan.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "worker/kv_cache.h"

namespace ferry {

struct Assignment {
  uint32_t worker_id = 0;
  uint32_t num_workers = 0;
  int64_t first_layer = 0, end_layer = 0;
  ModelConfig model;
  ArenaLayout arena;  // of the whole model
  KvCacheShape kv;
  int64_t max_rows = 0;  // of a step
  int64_t micro_batch_rows = 0;
  std::string expert_transport;  // "shm", "tcp" or "grpc"
  std::string expert_socket;     // tcp: on the coordinator's host
  int expert_port = 0;           // tcp: elsewhere; 0: none
  std::string descriptor_socket, descriptor_key;
  MailboxShape mailbox;
  absl::Duration heartbeat_interval, heartbeat_timeout;
  bool ooae = true;
  std::vector<ExpertRule> rules;  // one a layer of this worker
  bool may_help = false;          // other workers of this host, with shares of their layers
  uint64_t model_fingerprint = 0;
  int64_t dense_bytes = 0;  // 0: not known
};

// InvalidArgument names the field. Unimplemented: the model or a cache type is one that this worker does not know.
absl::StatusOr<Assignment> AssignmentFromProto(const internal::v1::RegisterResponse& response);

}  // namespace ferry
