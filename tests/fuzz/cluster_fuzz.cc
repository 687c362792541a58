// How a worker and its coordinator come together: what each says of itself, and the dense weights that follow. Each is refused,
// or is what the side that reads it counts on.
//
// Input (wire_input.h): a byte that chooses the target; messages of that kind.

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/time/clock.h"
#include "common/model/model_tensors.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/registration.h"
#include "tests/fuzz/wire_input.h"
#include "tests/testing/fake_clock.h"
#include "worker/assignment.h"
#include "worker/dense_chunk.h"

namespace ferry {
namespace {

// Registrations and heartbeats, in whatever order, into one cluster of two places.
void FuzzMembership(WireInput& input) {
  FakeClock clock;
  Membership membership({.num_workers = 2, .heartbeat_timeout = absl::Seconds(10)}, &clock);
  while (!input.empty()) {
    const uint8_t what = input.Byte();
    clock.Advance(absl::Seconds(what >> 4));
    membership.ExpireHeartbeats();
    if (what & 1) {
      const internal::v1::HeartbeatRequest beat = input.Next<internal::v1::HeartbeatRequest>();
      if (!CheckHeartbeat(beat).ok()) continue;
      Require(std::isfinite(beat.link_bytes_per_second()) && beat.load_progress() <= 1);
      const WorkerId worker(static_cast<int32_t>(beat.worker_id()));
      const Incarnation incarnation(beat.incarnation());
      if (!membership.RecordHeartbeat(worker, incarnation, beat.state() == "ready").ok()) continue;
      Require(beat.worker_id() < 2 && membership.Members()[worker.value()].info.incarnation == incarnation);
    } else {
      const auto registration = CheckRegistration(input.Next<internal::v1::RegisterRequest>(),
                                                  {.model_fingerprint = 7, .machine = "here", .expert_transport = "auto"});
      if (!registration.ok()) continue;
      Require(registration->expert_transport == "shm" || registration->expert_transport == "tcp" ||
              registration->expert_transport == "grpc");
      Require(std::isfinite(registration->link_bytes_per_second) && !registration->info.address.empty());
      const absl::StatusOr<WorkerId> place = membership.Register(registration->info, registration->wanted);
      if (!place.ok()) continue;
      Require(place->value() >= 0 && place->value() < 2);
      Require(membership.Check(*place, registration->info.incarnation).ok());
    }
    if (membership.AllReady()) Require(membership.BeginEpoch().ok());
    Require(membership.AllReady() == membership.Describe().empty());
  }
}

// What the worker makes of its assignment is of a size that can be reckoned with.
void FuzzAssignment(WireInput& input) {
  const absl::StatusOr<Assignment> assignment = AssignmentFromProto(input.Next<internal::v1::RegisterResponse>());
  if (!assignment.ok()) return;
  Require(assignment->first_layer >= 0 && assignment->first_layer < assignment->end_layer);
  Require(assignment->end_layer <= assignment->model.num_layers && assignment->worker_id < assignment->num_workers);
  Require(static_cast<int64_t>(assignment->rules.size()) == assignment->end_layer - assignment->first_layer);
  Require(assignment->arena.num_layers() == assignment->model.num_layers && assignment->arena.bytes() > 0);
  Require(assignment->heartbeat_interval > absl::ZeroDuration());
  Require(assignment->heartbeat_timeout >= assignment->heartbeat_interval);
  const int64_t blocks = std::max(assignment->kv.num_blocks, assignment->kv.num_slots * assignment->kv.ring_blocks);
  Require(std::isfinite(assignment->model.rms_epsilon));
  for (const LayerConfig& layer : assignment->model.layers) {
    int64_t kv_bytes = 0;
    const int64_t block_bytes = KvLayerBytes(layer.attention, DType::kF32, DType::kF32, 1);
    Require(!__builtin_mul_overflow(blocks, block_bytes * 1024, &kv_bytes) && kv_bytes > 0);
    const RopeConfig& rope = layer.attention.rope;
    for (const double value : {layer.attention.scale, rope.freq_base, rope.yarn_factor, rope.yarn_beta_fast, rope.yarn_beta_slow,
                               rope.attention_factor}) {
      Require(std::isfinite(value));
    }
  }
}

// The chunks of two tensors, as StageWeights takes them: what passes is exactly their bytes.
void FuzzDenseChunks(WireInput& input) {
  const DenseTensor tensors[] = {
      {.role = TensorRole::kTokenEmbedding, .layer = -1, .name = "token_embd.weight", .rows = 5, .cols = 64, .is_matrix = true},
      {.role = TensorRole::kAttentionNorm,
       .layer = 0,
       .name = "blk.0.attn_norm.weight",
       .rows = 1,
       .cols = 64,
       .is_matrix = false}};
  for (const DenseTensor& tensor : tensors) {
    std::vector<std::byte> data;
    int64_t row = 0, row_bytes = 0;
    DType dtype = DType::kF32;
    while (row < tensor.rows) {
      const internal::v1::TensorChunk message = input.Next<internal::v1::TensorChunk>();
      const absl::StatusOr<DenseChunk> chunk = DenseChunkFromProto(message);
      if (!chunk.ok() || !CheckChunkOf(tensor, *chunk).ok()) return;
      if (row == 0) {
        dtype = chunk->dtype;
        const absl::StatusOr<int64_t> bytes = DenseRowBytes(dtype, tensor.cols);
        if (!bytes.ok()) return;
        row_bytes = *bytes;
      }
      if (!CheckChunkRows(tensor, dtype, row_bytes, row, *chunk).ok()) return;
      data.insert(data.end(), chunk->data.begin(), chunk->data.end());
      row += chunk->num_rows;
    }
    Require(static_cast<int64_t>(data.size()) == tensor.rows * row_bytes);
  }
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ferry::WireInput input(data, size);
  switch (input.Byte() % 3) {
    case 0:
      ferry::FuzzMembership(input);
      break;
    case 1:
      ferry::FuzzAssignment(input);
      break;
    case 2:
      ferry::FuzzDenseChunks(input);
      break;
  }
  return 0;
}
