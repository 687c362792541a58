#pragma once

// The block KV cache of a stage: keys and values of its layers in device memory, allocated once.
//
// A full layer has num_blocks blocks, which the coordinator gives to sequences (StepSequence.blocks). A sliding layer has a
// ring of ring_blocks blocks for each slot. The ring holds the window and one micro-batch, so that the rows of a micro-batch do
// not overwrite keys that its first row still sees. A gated delta net has a state of fixed size for each slot instead.

#include <cstdint>
#include <memory>
#include <vector>

#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

struct KvCacheShape {
  DType key_type = DType::kF16, value_type = DType::kF16;
  int64_t num_blocks = 0;  // of a full layer
  int64_t num_slots = 0;
  int64_t ring_blocks = 0;      // of one slot in a sliding layer; unused without a sliding window
  int64_t num_host_blocks = 0;  // of all full layers, in host memory (worker/kv_host_store.h)
  int64_t num_host_states = 0;  // of slots, likewise
};

class KvCache {
 public:
  // InvalidArgument: a count below 1, or a ring shorter than the window plus `micro_batch_rows`. Unimplemented: `ops` does not
  // support the types. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(Ops* ops, const ModelConfig& model, int64_t first_layer,
                                                         int64_t end_layer, const KvCacheShape& shape, int64_t micro_batch_rows);
  // Device memory that Create allocates.
  static int64_t BytesOf(const ModelConfig& model, int64_t first_layer, int64_t end_layer, const KvCacheShape& shape);

  const KvLayer& layer(int64_t layer) const { return layers_[layer - first_layer_]; }
  const DeltaStates& states(int64_t layer) const { return states_[layer - first_layer_]; }  // of a gated delta net
  // The blocks of a slot's ring, for BatchSequence.ring_blocks; empty without a sliding window.
  std::vector<int32_t> RingOf(int32_t slot) const;
  int64_t bytes() const { return bytes_; }

 private:
  KvCache() = default;

  int64_t first_layer_ = 0;
  int64_t ring_blocks_ = 0;
  int64_t bytes_ = 0;
  std::vector<KvLayer> layers_;
  std::vector<DeltaStates> states_;
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace ferry
