#pragma once

// The experts of the model in host memory: a shared-memory arena in ArenaLayout, filled from the GGUF file once and then sealed.
// The engine reads it here, workers of this host through a read-only mapping of their own.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/model/model_tensors.h"
#include "common/shm/shm_arena.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "coordinator/experts/held_experts.h"

namespace ferry {

struct LoadProgress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

class ExpertStore {
 public:
  // Reads all experts of `file`, with all threads of `pool`; calls `progress` now and then from one thread. Releases the file's
  // pages after reading them, so that memory does not hold the experts twice.
  // ResourceExhausted: the arena does not fit into this machine's memory; InvalidArgument names a tensor.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Load(const GgufFile& file, const ModelConfig& config, ThreadPool& pool,
                                                           const std::function<void(const LoadProgress&)>& progress);

  // The records of some experts alone, of a model laid out as `layout`; memory is taken for those only. `fill` writes the records
  // of one layer, experts increasing, into their zeros. Errors of `fill`; ResourceExhausted.
  struct RecordToFill {
    int64_t expert = 0;
    std::span<std::byte> record;
  };
  using FillRecords = std::function<absl::Status(int64_t layer, std::span<const RecordToFill> records)>;
  static absl::StatusOr<std::unique_ptr<ExpertStore>> LoadHeld(const ArenaLayout& layout, HeldExperts held, ThreadPool& pool,
                                                               const FillRecords& fill,
                                                               const std::function<void(const LoadProgress&)>& progress);

  const ArenaLayout& layout() const { return layout_; }
  const ShmArena& arena() const { return arena_; }
  // The record of an expert. InvalidArgument: layer or expert out of range. NotFound: this store does not hold it.
  absl::StatusOr<std::span<const std::byte>> Record(int64_t layer, int64_t expert) const;
  bool Holds(int64_t layer, int64_t expert) const;
  double load_seconds() const { return load_seconds_; }
  bool huge_pages() const { return huge_pages_; }  // whether almost all of the arena is in huge pages

 private:
  ExpertStore() = default;
  ArenaLayout layout_;
  ShmArena arena_;
  std::optional<HeldExperts> held_;  // nothing: all
  double load_seconds_ = 0;
  bool huge_pages_ = false;
};

// Writes one expert of a layer, from the file's tensors, into its record. `record` has layout.bytes bytes, which are zeros:
// padding is not written. Errors of TileRows; InvalidArgument names the tensor and the expert with a scale that is no number.
absl::Status FillExpertRecord(const ExpertTensors& tensors, const ExpertLayout& layout, int64_t expert,
                              std::span<std::byte> record);

}  // namespace ferry
