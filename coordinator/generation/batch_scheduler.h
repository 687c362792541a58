#pragma once

// Which rows go into the next step: continuous batching at token granularity. No RPC, no threads, no waiting.
//
// A request waits in a queue until a slot and all the KV blocks that it may need are free; then it runs. A
// step takes the next row of every decoding request, and chunks of unfinished prompts, oldest first. While a request decodes,
// all prompts together get micro_batch_tokens rows a step, so that a long prompt delays the others' next tokens little. Otherwise
// prompts get the whole step, since an expert then crosses the link once for more tokens; with several workers they get as many
// rows as keep all workers busy.
//
// When the cluster loses its caches, requests that ran are held: they wait ahead of all others, and once the caches are back they
// run again from their first row to their last known token, and then go on. Sampled tokens stay; only rows are computed again.
//
// Owners share fairly. Each has a share of the requests that run at once: the same for all that are here, and one at least. The
// next request is of an owner below its share, and of those, of the one that was given the fewest tokens; the requests of one
// owner are served by priority, and those of one priority in their order. When there is no room for it, the youngest requests of
// owners above their share are suspended: they give their slots away, wait in their old order, and go on later as after a loss of
// the caches. The oldest requests of an owner, as many as its share, are never suspended, so all of them get to their end. An
// owner whose last request has just ended keeps a place free for its next one for a moment, because a suspended request has its
// rows computed anew. Prompts share the rows of a step in the same way.
//
// Several steps may be in flight. A decoding request is in one of them at most, since its next token depends on the
// last; the chunks of one prompt follow each other. Workers compute steps in order, so a slot released while a step
// with it is in flight can be leased again at once: later steps overwrite what that step writes before they read it.
//
// A request waits while a running one computes rows that it will reuse (KvSlots::WorthWaitingFor), so that the common beginning
// of requests that come together is computed once. Others go ahead of it meanwhile.
//
// One thread.

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/clock.h"
#include "coordinator/cluster/step_plan.h"
#include "coordinator/generation/kv_slots.h"

namespace ferry {

// Whose a request is.
struct GenerationOwner {
  std::string name;          // requests of one owner share what the owner is given; empty: of nobody in particular
  std::string cache_domain;  // prefixes are reused among requests of one domain alone
  int64_t max_queued = 0;    // of its requests that wait; 0: no limit but the queue's
};

// A request as the scheduler sees it. Only the scheduler's thread calls it; any thread may read the constants.
class Generation {
 public:
  virtual ~Generation() = default;

  // Constants.
  virtual int64_t prompt_tokens() const = 0;   // 1 or more
  virtual int64_t reserve_tokens() const = 0;  // prompt and output together, at most
  virtual bool may_reuse_prefix() const = 0;   // false when the whole prompt has to be computed
  virtual absl::Time deadline() const = 0;     // InfiniteFuture: none
  virtual const GenerationOwner& owner() const {
    static const GenerationOwner kNobody;
    return kNobody;
  }
  virtual int32_t priority() const { return 0; }  // of its owner's requests, the lowest go first
  virtual bool forgets_experts() const = 0;       // its first step begins with empty expert slots
  virtual bool resumes() const { return true; }   // goes on after the caches were lost; otherwise that ends it

  // The prompt and the tokens sampled so far.
  virtual std::span<const int32_t> tokens() const = 0;
  // Which logits the request wants from the row of the token at `position`, which predicts the next token. The scheduler asks for
  // the last token's row once that token is known. After a resume it also asks for rows that were already answered; the request
  // wants nothing from those.
  virtual std::optional<LogitsRequest> LogitsAt(int64_t position) const = 0;

  virtual void OnAdmitted(int64_t cached_tokens) = 0;
  // It runs again after its caches were lost.
  virtual void OnResumed() {}
  // It gave its slot to another owner's request, and runs again later.
  virtual void OnSuspended() {}
  // The model has computed rows [first_position, first_position + num_tokens); `logits` are those that LogitsAt asked for, in
  // order. After the row of the last token, either tokens() has grown, or the call returns true: the request is finished.
  virtual bool OnRows(int64_t first_position, int64_t num_tokens, std::span<LogitsResult> logits,
                      const v1::ExpertCounters& experts) = 0;
  // When SendUnsent is to be called at the latest, since tokens wait for the next one; InfiniteFuture: none do.
  virtual absl::Time unsent_until() const { return absl::InfiniteFuture(); }
  virtual void SendUnsent() {}
  // The request ends with an error.
  virtual void OnFailed(const absl::Status& status) = 0;
};

struct BatchSchedulerOptions {
  int64_t max_batch_tokens = 2048;
  int64_t micro_batch_tokens = 512;
  int64_t max_running = 4;
  int64_t max_queued = 64;
  // Logits of one step, so that its answer fits a message (4 bytes each): a row of all logits counts vocab_size, a row
  // of the best n counts 2n, for their ids, and 8 more.
  int64_t max_logits = 8 << 20;
  int64_t vocab_size = 0;
  KvSlotsOptions slots;
  // How long a request is held while the caches are lost. The time starts again if the request got a row between two losses.
  // Zero: requests are not held.
  absl::Duration resume_patience;
};

class BatchScheduler {
 public:
  // `clock` must outlive this.
  BatchScheduler(const BatchSchedulerOptions& options, const Clock* clock);

  // On an error the scheduler does not keep the request and does not call it. ResourceExhausted: the queue is full, and no other
  // owner has more places in it;
  // InvalidArgument: it would never fit the cache; DeadlineExceeded: its deadline has passed.
  absl::Status Enqueue(std::shared_ptr<Generation> generation);
  // Drops a queued or running request without calling it; its slot and blocks are free afterwards.
  void Cancel(const Generation* generation);
  // Ends requests past their deadline with DeadlineExceeded, and has tokens sent that have waited for others long enough.
  void ExpireDeadlines();
  // When ExpireDeadlines will have something to do, by the queued and running requests.
  absl::Time NextDeadline() const;

  // The next step, if there is work that does not depend on a step in flight and fewer than `max_in_flight` steps are. It is in
  // flight from now until OnStepDone. A prompt is cut where the step is full (max_batch_tokens, max_logits), where others decode
  // (micro_batch_tokens), among owners, and so that `max_in_flight` workers are busy (step_rows.h).
  std::optional<StepPlan> NextStep(int max_in_flight, double step_cost_rows = std::numeric_limits<double>::infinity());
  // Steps end in order. A step that was forgotten by FailAll is ignored.
  void OnStepDone(StepId id, StepOutcome outcome);
  // Ends all requests, queued ones too, and forgets all sequences and steps in flight.
  void FailAll(const absl::Status& status);
  // The cluster has lost its caches, for the reason `status`: forgets all sequences and steps in flight, and holds the requests,
  // also those that come, until CachesReturned. Ends with `status` those that do not resume. An Internal status is a step's own
  // failure: the second one in a row without a new row of a running request also ends that request, as the likely cause. Ends
  // with Unavailable those whose patience is over.
  void LoseCaches(const absl::Status& status);
  // NextStep plans again.
  void CachesReturned() { lost_ = absl::OkStatus(); }
  // Whether a request may be enqueued and held while the caches are lost.
  bool Holds(const Generation& generation) const {
    return options_.resume_patience > absl::ZeroDuration() && generation.resumes();
  }

  int64_t num_resumed() const { return num_resumed_; }      // how often requests ran again after a loss
  int64_t num_suspended() const { return num_suspended_; }  // how often requests gave their slot to another owner's
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_queued() const { return static_cast<int64_t>(queue_.size()); }
  int num_in_flight() const { return static_cast<int>(in_flight_.size()); }
  const KvSlots& slots() const { return slots_; }

 private:
  // What a request went through before it runs.
  struct Past {
    uint64_t arrival = 0;      // requests came in this order
    bool ran = false;          // a loss of the caches stopped it, and it got no further row before it was suspended
    int64_t rows_done = 0;     // leading rows that were answered before the loss, or before it was suspended
    int failures = 0;          // Internal failures in a row without a new answered row
    absl::Time patience_ends;  // while the caches are lost
  };
  enum class Cause { kNew, kHeld, kSuspended };
  struct Waiting {
    std::shared_ptr<Generation> generation;
    Past past;
    Cause cause = Cause::kNew;  // why it waits
  };
  struct Owner {
    int64_t served = 0;                // tokens that its requests were given, as reserved
    int64_t running = 0, waiting = 0;  // its requests, as CountOwners found them
    absl::Time seen;                   // when a request of it last came or ended
  };
  struct Running {
    std::shared_ptr<Generation> generation;
    Past past;
    int64_t known_tokens = 0;  // when it was admitted: their rows are computed as those of a prompt
    int64_t rows_done = 0;     // leading rows that were answered
    KvSlots::Lease lease;
    int64_t submitted = 0;  // rows put into steps, or cached
    bool begun = false;     // a step has rows of it
    uint64_t turn = 0;      // when it last got rows: the lowest goes first
    bool left_out = false;  // the last step skipped it: the logits of other requests had filled the step
    bool ended = false;     // steps in flight may still name it
  };
  struct Part {
    std::shared_ptr<Running> running;
    int64_t first_position, num_tokens, num_logits;
  };
  struct InFlight {
    StepId id;
    std::vector<Part> parts;
  };

  void Admit();
  // Places a request that waits, if there is room; otherwise leaves it untouched and returns false.
  bool Place(Waiting* waiting);
  // The request's next turn, or its end.
  void Hold(Waiting waiting, const absl::Status& status);
  // The queue is full, and an owner with `of_owner` requests in it has one more: ends the last request of the owner that has most
  // there, if it has still as many afterwards. False: nobody has more.
  bool FreeAPlaceInQueue(int64_t of_owner);
  // Counts the requests of each owner, and forgets owners that are gone.
  void CountOwners();
  // How many requests of each owner run when all owners have many.
  int64_t Share() const;
  // How many requests of the owner may run beside places that others have kept.
  int64_t MayRun(const std::string& owner) const;
  // Of the requests that wait, the index of the one whose turn it is; none when all have to leave places free, or wait for rows.
  std::optional<size_t> NextInLine() const;
  // Whether a running request computes rows now that this one will reuse.
  bool WaitsForRows(const Waiting& waiting) const;
  // Whether `waiting` can be placed now, after others were suspended for it if need be.
  bool MakeRoomFor(const Waiting& waiting);
  void Suspend(const std::shared_ptr<Running>& running);
  // Where an owner begins that comes, or comes back.
  void Welcome(const std::string& owner);
  // Of a step's `rows` for prompts, how many each owner gets. There is a prompt.
  std::map<std::string, int64_t> RowsOfPrompts(int64_t rows) const;
  // Adds up to `max_tokens` of the request's next rows to the step, as far as its logits fit; returns how many.
  int64_t AddRows(const std::shared_ptr<Running>& running, int64_t max_tokens, int64_t* logits_left, StepPlan* step,
                  InFlight* in_flight);
  void End(Running& running);  // releases its slot; the caller removes it from running_
  void RemoveEnded();

  const BatchSchedulerOptions options_;
  const Clock& clock_;
  KvSlots slots_;
  std::deque<Waiting> queue_;                      // those that are held are in front; those of one owner are in order of arrival
  std::map<std::string, Owner> owners_;            // that are here, or were a moment ago
  std::vector<std::shared_ptr<Running>> running_;  // in order of admission
  std::deque<InFlight> in_flight_;
  uint64_t last_step_ = 0;
  uint64_t last_turn_ = 0;
  uint64_t last_arrival_ = 0;
  absl::Status lost_;  // why the caches are lost; OK: they are there
  int64_t num_resumed_ = 0, num_suspended_ = 0;
};

}  // namespace ferry
