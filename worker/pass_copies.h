#pragma once

// The copies of one pass over a layer's experts on this device. It keeps the experts that slots have, copies the others as slots
// become free, and returns experts to compute as their records arrive.
//
//   Begin -> Start -> NextReady, Start, NextReady, Start ... until done()
//
// One thread: the compute thread.

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/expert_cache.h"

namespace ferry {

class PassCopies {
 public:
  // `cache` outlives this.
  explicit PassCopies(ExpertCache* cache) : cache_(*cache) {}

  // Begins a pass. Pins the `uses` that slots have; the others are wanted, those with most tokens first, so that the products
  // that take longest hide the copies behind them. `tokens` [num_experts]: rows of each expert, valid until done(). With
  // `copy_unused`, the layer's experts without tokens are copied too, after the others.
  void Begin(int64_t layer, std::span<const ActivatedExpert> uses, std::span<const int32_t> tokens, bool copy_unused);
  // Asks for as many of the wanted experts as slots allow. True: none is left to ask for, so slots may serve the next layer.
  absl::StatusOr<bool> Start(Deadline deadline);
  // The pinned experts to compute next: all that have arrived, or, if none has, the one asked for first, whose arrival compute
  // waits for. An empty answer before done() means that every slot waited for a background copy and that one has started:
  // the caller calls Start again. The caller acquires and releases each expert (expert_cache.h).
  absl::StatusOr<std::vector<int32_t>> NextReady(Deadline deadline);
  bool done() const { return coming_.empty() && next_wanted_ == wanted_.size(); }
  // After a failed step, together with ExpertCache::Recover.
  void Recover();

 private:
  ExpertId IdOf(int32_t expert) const { return {static_cast<int32_t>(layer_), expert}; }

  ExpertCache& cache_;
  int64_t layer_ = 0;
  std::span<const int32_t> tokens_;
  std::vector<int32_t> wanted_;  // in the order in which they are asked for
  size_t next_wanted_ = 0;       // the first one not asked for
  std::deque<int32_t> coming_;   // pinned, not returned by NextReady
};

}  // namespace ferry
