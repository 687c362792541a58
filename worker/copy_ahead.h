#pragma once

// Copies records into slots before their layer is routed: for the next layer while this one is computed, and for all layers of a
// step while its rows have not arrived. ExpertForecast says which experts are worth it.
//
// One thread: the compute thread.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "worker/expert_cache.h"
#include "worker/expert_forecast.h"
#include "worker/expert_policy.h"

namespace ferry {

class CopyAhead {
 public:
  using ModeOf = std::function<ExpertMode(int64_t layer, int64_t rows)>;

  // For layers [first_layer, end_layer). `cache` and `arena` outlive this.
  CopyAhead(ExpertCache* cache, const ArenaLayout* arena, int64_t first_layer, int64_t end_layer, int64_t num_experts,
            ModeOf mode_of)
      : cache_(*cache),
        arena_(*arena),
        first_layer_(first_layer),
        end_layer_(end_layer),
        num_experts_(num_experts),
        mode_of_(std::move(mode_of)),
        forecast_(first_layer, end_layer, num_experts) {}

  // A step of so many rows begins; the next layer is the first one with experts.
  void BeginStep(int64_t rows);
  // `layer` is the next one that is routed, for `rows` rows: chooses the experts that Start copies. None past the last layer.
  // When `helpers` other workers will copy as much, experts are left to them: what this link has begun they cannot take over.
  void Plan(int64_t layer, int64_t rows, int helpers = 0);
  // Starts as many of these copies as slots allow, and pins them until EndLayer.
  absl::Status Start(Deadline deadline);
  // The planned layer is routed: unpins its experts, so that the layer itself pins those it uses.
  void EndLayer();

  // While the rows of the step that began are awaited and the link is idle: starts copies for its layers, a few at a time, so
  // that a record needed at once does not queue behind many. False: nothing is left to copy.
  absl::StatusOr<bool> CopyWhileWaiting(Deadline deadline);
  // How long that will go on at the rate seen so far; InfiniteDuration while no rate is known.
  absl::Duration WaitingCopiesLeft() const;

  // The forecast learns from each layer's routing and from each plan (expert_forecast.h).
  void LearnRouting(int64_t layer, int64_t rows, std::span<const int32_t> tokens) { forecast_.Learn(layer, rows, tokens); }
  void LearnPlan(int64_t rows, int64_t worth_tokens) { forecast_.LearnPlan(rows, worth_tokens); }

  // After a failed step, together with ExpertCache::Recover.
  void Recover();

 private:
  // Copies for the next layer.
  struct NextLayer {
    int64_t layer = -1;
    ExpertForecast::Candidates candidates;
    size_t next = 0;                   // the first candidate not asked for
    std::vector<int32_t> pinned;       // by this class
    std::vector<int32_t> speculative;  // of these: asked for though merely likely
  };
  // Copies for all layers of a step whose rows are awaited.
  struct Waiting {
    int64_t rows = 0;
    bool planned = false;
    std::vector<ExpertId> candidates;  // in the order in which they are copied
    size_t next = 0;
    int64_t asked = 0;  // records
    Stopwatch since;    // the first was asked for
  };
  void PlanWaiting();
  void LeaveToHelpers(int helpers);

  ExpertCache& cache_;
  const ArenaLayout& arena_;
  const int64_t first_layer_, end_layer_, num_experts_;
  const ModeOf mode_of_;
  ExpertForecast forecast_;
  NextLayer next_;
  Waiting waiting_;
};

}  // namespace ferry
