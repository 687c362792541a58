#pragma once

// The part of a worker's KV cache that is in host memory: blocks of its full layers, and states of slots (common/cache_move.h).
//
// Copies are queued with the computation, so a move is done before whatever is computed after it. Blocks that move the same way
// one after the other are copied together: 512 of them are thousands of copies of 32 KiB. Memory is reserved at once, but takes
// no pages until it is used; it is page-locked piece by piece then. Behind what is used, as much again gets its pages on a thread
// of its own (pages_ahead.h), since the next prompt waits for them otherwise.
//
// One thread.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/cache_move.h"
#include "common/deadline.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/kv_cache.h"
#include "worker/pages_ahead.h"

namespace ferry {

class KvHostStore {
 public:
  // `ops` and `cache`, which is that of the layers [first_layer, end_layer), outlive the store. ResourceExhausted: no address
  // space.
  static absl::StatusOr<std::unique_ptr<KvHostStore>> Create(Ops* ops, const KvCache* cache, const ModelConfig& model,
                                                             int64_t first_layer, int64_t end_layer, const KvCacheShape& shape);

  ~KvHostStore();
  KvHostStore(const KvHostStore&) = delete;
  KvHostStore& operator=(const KvHostStore&) = delete;

  // Queues moves, one after the other, whose numbers are within the shape's. DeadlineExceeded: the queue took past `deadline`.
  absl::Status Move(std::span<const CacheMove> moves, Deadline deadline);

 private:
  // Of a layer: blocks or slots, one after the other.
  struct Plane {
    std::byte* data;
    int64_t bytes;  // of a block, or of a slot
  };
  // Host memory in units of one size.
  struct Units {
    int64_t unit_bytes = 0, count = 0, units_a_piece = 1;
    std::span<std::byte> memory;
    std::vector<bool> locked;  // pieces; tried once
    std::unique_ptr<PagesAhead> ahead;
  };

  explicit KvHostStore(Ops* ops) : ops_(*ops) {}
  absl::Status Reserve(int64_t unit_bytes, int64_t count, Units* units);
  std::span<std::byte> Unit(Units* units, int64_t index);  // page-locked, if that is possible
  std::span<std::byte> PieceOf(const Units& units, int64_t piece) const;
  static std::span<std::byte> AddCopies(std::span<const Plane> planes, int64_t index, std::span<std::byte> host,
                                        std::vector<HostCopy>* copies);
  absl::Status SaveBlocks(std::span<const CacheMove> moves);
  absl::Status LoadBlocks(std::span<const CacheMove> moves, Deadline deadline);
  absl::Status CopyBlock(const CacheMove& move, Deadline deadline);
  absl::Status MoveState(const CacheMove& move, Deadline deadline);
  absl::Status AwaitSaved(Deadline deadline);
  absl::Status SaveAll(std::span<const HostCopy> copies);

  Ops& ops_;
  std::vector<Plane> full_, rings_, nets_;
  int64_t window_ = 0, ring_blocks_ = 0;
  Units blocks_, states_;
  bool saving_ = false;   // host memory may be written yet: a load must not read it at once
  bool may_lock_ = true;  // no attempt has failed
};

}  // namespace ferry
