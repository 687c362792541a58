#pragma once

// The experts of one layer, over all rows of a step: route, divide the activated experts between this device and the host, copy
// those that are computed here and not here yet, compute both shares at the same time, and add up each row's contributions in
// the order of its ranks. Where an expert is computed changes no bit on backends that run the host's kernels.
//
// Large steps are divided by the coordinator's planner. Small ones (decode) are not worth asking: what is resident is computed
// here and the rest on the host, and an expert that has become hotter than what a slot holds is copied in the background.

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/ops.h"
#include "worker/copy_ahead.h"
#include "worker/expert_cache.h"
#include "worker/expert_link.h"
#include "worker/host_rows.h"
#include "worker/host_share.h"
#include "worker/step_trace.h"

namespace ferry {

// Where a layer's experts may be computed: the rules of `-ot`.
enum class LayerRule { kAny, kHost, kDevice };

// For tests and measurements: overrides what the planner and the rules would do.
enum class ForceDivision { kAuto, kHost, kShip };

struct ExpertPolicy {
  bool ooae = true;  // false: every expert of a layer is shipped, used or not
  ForceDivision force = ForceDivision::kAuto;
  std::vector<LayerRule> rules;  // one a layer of the stage; empty: kAny
};

// How a layer's experts are divided in a step.
enum class Division {
  kHost,              // all on the host
  kResidentElseHost,  // what is in slots here, the rest on the host
  kPlanned,           // as the coordinator's planner says
  kShipActivated,     // all here
  kShipAll,           // all here, and those not activated are shipped as well
};
inline constexpr int64_t kMaxRowsWithoutPlan = 8;
Division DivisionFor(const ExpertPolicy& policy, LayerRule rule, bool has_slots, int64_t rows);

// What a step carries along.
struct StepContext {
  uint64_t step = 0;
  absl::Time deadline;
  v1::ExpertCounters* counters = nullptr;
  StepTrace* trace = nullptr;
};

class ExpertForward {
 public:
  struct Options {
    ModelConfig model;
    ArenaLayout arena;  // of the whole model
    int64_t first_layer = 0, end_layer = 0;
    int64_t max_rows = 0;  // of a step
    ExpertPolicy policy;
  };
  // `cache` is null without slots. All must outlive this. FailedPrecondition: a policy that needs slots without enough of them,
  // with the flag that gives some. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<ExpertForward>> Create(Ops* ops, ExpertLink* link, ExpertCache* cache,
                                                               const Options& options);
  // Device memory that Create allocates.
  static int64_t BytesOf(const Ops& ops, const ModelConfig& model, int64_t max_rows);

  // Whether experts of this layer are ever computed on this device, given slots.
  bool ComputesHere(int64_t layer) const { return DivisionOf(layer, INT64_MAX) != Division::kHost; }
  // Empties the slots. Before a step.
  absl::Status Forget(absl::Time deadline);
  // A step of so many rows begins, whose rows may still be on their way: copies for its first layer may start.
  absl::Status BeginStep(const StepContext& context, int64_t rows);
  // Between BeginStep and the arrival of its rows, when the link stands idle: copies what the step's layers will probably use,
  // layer by layer, a few at a time, so that what turns out to be needed at once does not stand behind many. False: nothing more
  // to copy.
  absl::StatusOr<bool> CopyWhileWaiting(const StepContext& context);
  // x += the experts of `layer` applied to `in`. in: act [rows, n_embd], x: F32 [rows, n_embd].
  absl::Status Run(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, Tensor x);
  // The step failed somewhere: slots are released, nothing is left running.
  void Recover();
  // The step is over: its counters are not written any more.
  void EndStep();

 private:
  // The assignments of the layer in progress.
  struct Routing {
    int64_t rows = 0;
    ExpertGroups device;
    std::vector<int32_t> downloaded;  // offsets, then, when the host has a share, rows and outs
    HostGroups host;
    std::vector<int32_t> tokens;                                    // of each expert
    std::vector<ActivatedExpert> uses;                              // ids increasing
    bool small() const { return rows <= HostRows::kMaxRowsAhead; }  // rows and outs come with the offsets
  };
  // Copies for the next layer, before it is routed.
  struct Ahead {
    int64_t layer = -1;
    CopyAhead::Candidates candidates;
    size_t next = 0;
    std::vector<int32_t> pinned;       // by us, until the layer is routed
    std::vector<int32_t> speculative;  // of them, started though merely likely
  };

  // Copies for all layers, while the step's rows are awaited.
  struct Waiting {
    int64_t rows = 0;
    bool planned = false;
    std::vector<ExpertId> candidates;  // in order
    size_t next = 0;
  };

  ExpertForward(Ops* ops, ExpertLink* link, ExpertCache* cache, const Options& options)
      : ops_(*ops),
        link_(*link),
        cache_(cache),
        options_(options),
        copy_ahead_(options.first_layer, options.end_layer, options.model.router.num_experts) {}

  LayerRule RuleOf(int64_t layer) const;
  Division DivisionOf(int64_t layer, int64_t rows) const {
    return DivisionFor(options_.policy, RuleOf(layer), cache_ != nullptr, rows);
  }

  absl::Status Route(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, Division division);
  absl::Status ReadEntries(int64_t layer);
  absl::StatusOr<std::vector<ExpertPlace>> Divide(const StepContext& context, int64_t layer, Division division);
  absl::Status StartHost(const StepContext& context, int64_t layer, Tensor in);
  absl::Status FinishHost(const StepContext& context, int64_t layer, Tensor in);
  absl::Status StartCopies(const StepContext& context, int64_t layer);
  absl::Status ComputeHere(const StepContext& context, int64_t layer, Tensor in);
  absl::Status ComputeTogether(const StepContext& context, int64_t layer, std::span<const int32_t> experts, Tensor in);
  absl::Status KeepTheHot(const StepContext& context, int64_t layer, std::span<const int32_t> on_host);

  void PlanAhead(int64_t layer, int64_t rows);
  absl::Status StartAhead(const StepContext& context);
  void EndAhead();
  void PlanWaiting();

  ExpertId IdOf(int64_t layer, int32_t expert) const { return {static_cast<int32_t>(layer), expert}; }
  Tensor Contributions() const;

  Ops& ops_;
  ExpertLink& link_;
  ExpertCache* const cache_;  // null: no slots
  const Options options_;
  CopyAhead copy_ahead_;

  DeviceBuffer chosen_;         // i32 [max_rows, top_k]
  DeviceBuffer weights_;        // F32 [max_rows, top_k]
  DeviceBuffer groups_;         // i32: offsets, entry rows, entry outs
  DeviceBuffer contributions_;  // contribution_dtype [max_rows * top_k, n_embd]

  std::unique_ptr<HostRows> host_rows_;
  Routing routing_;
  Ahead ahead_;
  Waiting waiting_;
  std::vector<int32_t> wanted_;  // experts to have in slots for this layer, in order, not fetched yet
  size_t next_wanted_ = 0;
  std::deque<int32_t> coming_;     // fetched and pinned, not computed yet
  std::vector<HostChunk> chunks_;  // the host's share
  size_t next_chunk_ = 0;          // first one not finished
  bool host_running_ = false;      // chunks_[next_chunk_] is being computed
};

}  // namespace ferry
