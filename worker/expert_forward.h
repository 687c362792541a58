#pragma once

// The experts of one layer over all rows of a step: routes, decides where each activated expert is computed, copies the experts
// for this device that are not in slots, computes both shares at the same time, and adds up each row's contributions in the order
// of its ranks. On backends that run the host's kernels, the place of an expert changes no bit of the result.
//
// The coordinator's planner places the experts of a large step. A small step (decode) is not worth the question: this device
// computes resident experts and the host the others; an expert hotter than one in a slot is copied in the background.
//
// Other workers of the host that have nothing else to do compute shares of a large step too (worker/help_share.h).
//
// A device that shares the host's memory needs none of this: it reads every expert where it lies (ExpertPolicy::in_place).
//
// One thread: the compute thread.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/copy_ahead.h"
#include "worker/expert_cache.h"
#include "worker/expert_link.h"
#include "worker/expert_policy.h"
#include "worker/expert_routing.h"
#include "worker/help_share.h"
#include "worker/host_share.h"
#include "worker/pass_copies.h"
#include "worker/step_context.h"

namespace ferry {

class ExpertForward {
 public:
  struct Options {
    ModelConfig model;
    ArenaLayout arena;  // of the whole model
    int64_t first_layer = 0, end_layer = 0;
    int64_t max_rows = 0;  // of a step
    ExpertPolicy policy;
  };
  // `cache` is null without slots. All outlive this. FailedPrecondition: the policy needs more slots than there are, and the
  // message has the flag that gives some; or the device cannot read experts in place. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<ExpertForward>> Create(Ops* ops, ExpertLink* link, ExpertCache* cache,
                                                               const Options& options);
  // Device memory that Create allocates.
  static int64_t BytesOf(const Ops& ops, const ModelConfig& model, int64_t max_rows);

  // Whether a step can compute experts of this layer on this device.
  bool ComputesHere(int64_t layer) const { return ModeOf(layer, INT64_MAX) != ExpertMode::kHost; }
  // Between steps: the boards over which other workers help; null: none do.
  void SetBoards(std::shared_ptr<HelpBoards> boards) { help_share_.SetBoards(std::move(boards)); }
  // Between steps or before a step's rows have come: memory that nothing uses then, contribution_dtype [max_rows * top_k,
  // n_embd].
  Tensor IdleContributions() const;
  // Before a step: empties the slots.
  absl::Status Forget(Deadline deadline);
  // A step of so many rows begins; its rows may not have arrived. Starts copies for its first layer.
  absl::Status BeginStep(const StepContext& context, int64_t rows);
  // Between BeginStep and the arrival of the rows, while the link is idle: copies experts that the step will probably use. False:
  // nothing is left to copy.
  absl::StatusOr<bool> CopyWhileWaiting(const StepContext& context);
  // How long that will take; InfiniteDuration: not known.
  absl::Duration WaitingCopiesLeft() const { return copies_ ? copies_->ahead.WaitingCopiesLeft() : absl::ZeroDuration(); }
  // x += the experts of `layer` applied to `in`. in: act [rows, n_embd], x: F32 [rows, n_embd].
  absl::Status Run(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, Tensor x);
  // The step failed, here or elsewhere: releases slots and ends what runs.
  void Recover();
  // The step is over: its counters are not written any more.
  void EndStep();

 private:
  // The activated experts of the layer, by the place where they are computed; ids increasing.
  struct Shares {
    std::vector<ActivatedExpert> here;
    std::vector<int32_t> on_host;
    std::map<int64_t, std::vector<ActivatedExpert>> helped;  // by the helping worker's id
  };
  // Present when there are slots.
  struct Copies {
    PassCopies pass;
    CopyAhead ahead;
  };

  ExpertForward(Ops* ops, ExpertLink* link, ExpertCache* cache, const Options& options);

  // The workers that may help with the layer in progress, as of ExpertRequest::helpers. Decode asks nobody, and the planner,
  // which divides among them, knows nothing of a forced division.
  uint32_t Helpers() const;
  // How many of them may help with the next layer, if it is routed as long after the one in progress as that was after its own
  // predecessor.
  int HelpersForNextLayer();
  ExpertMode ModeOf(int64_t layer, int64_t rows) const {
    return ModeFor(options_.policy, options_.policy.RuleOf(layer - options_.first_layer), cache_ != nullptr, rows);
  }

  absl::Status Route(const StepContext& context, int64_t layer, const RouterWeights& router, Tensor in, ExpertMode mode);
  absl::Status LearnRouting(int64_t layer);
  absl::StatusOr<std::vector<ExpertPlace>> ChoosePlaces(const StepContext& context, int64_t layer, ExpertMode mode);
  Shares SharesOf(const StepContext& context, std::span<const ExpertPlace> places) const;
  absl::Status BeginCopies(const StepContext& context, int64_t layer, ExpertMode mode, std::span<const ActivatedExpert> here);
  absl::Status StartCopies(const StepContext& context);
  absl::Status StartOthers(const StepContext& context, int64_t layer, Tensor in, const Shares& shares);
  absl::Status FinishHelp(const StepContext& context, int64_t layer, ExpertMode mode, Tensor in);
  absl::Status ComputeReady(const StepContext& context, int64_t layer, Tensor in);
  absl::Status ComputeTogether(const StepContext& context, int64_t layer, std::span<const int32_t> experts, Tensor in);
  absl::Status ComputeInPlace(const StepContext& context, int64_t layer, std::span<const ActivatedExpert> here, Tensor in);
  absl::Status Compute(int64_t layer, std::span<const ExpertUse> uses, Tensor in);
  absl::Status KeepTheHot(const StepContext& context, int64_t layer, std::span<const int32_t> on_host);

  ExpertId IdOf(int64_t layer, int32_t expert) const { return {static_cast<int32_t>(layer), expert}; }
  Tensor Contributions() const;

  Ops& ops_;
  ExpertLink& link_;
  ExpertCache* const cache_;  // null: no slots
  const Options options_;

  std::unique_ptr<ExpertRouting> routing_;
  DeviceBuffer contributions_;  // contribution_dtype [max_rows * top_k, n_embd]
  std::unique_ptr<HostShare> host_share_;
  HelpShare help_share_;
  std::optional<Copies> copies_;
  std::vector<ActivatedExpert> uses_;          // of the layer in progress, ids increasing
  std::optional<Stopwatch> since_last_layer_;  // of this step, was routed
};

}  // namespace ferry
