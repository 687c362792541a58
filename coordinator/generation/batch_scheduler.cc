#include "coordinator/generation/batch_scheduler.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "coordinator/planning/step_rows.h"

namespace ferry {
namespace {

// What a row of logits costs beside its ids and values, in units of one logit.
constexpr int64_t kRowOverhead = 8;
// Of steps, without a further row of a request in between: once may have been a device that has been replaced since.
constexpr int kMaxFailures = 2;
// How long an owner counts as being here after its last request: longer than a client takes to ask again, and short enough that
// places that nobody uses cost others little.
constexpr absl::Duration kPresence = absl::Seconds(1);

}  // namespace

BatchScheduler::BatchScheduler(const BatchSchedulerOptions& options, const Clock* clock)
    : options_(options), clock_(*clock), slots_(options.slots) {}

absl::Status BatchScheduler::Enqueue(std::shared_ptr<Generation> generation) {
  if (!slots_.CanEverHold(generation->reserve_tokens())) {
    return InvalidArgument("a prompt of %d tokens with its output needs %d tokens of KV cache, there are %d",
                           generation->prompt_tokens(), generation->reserve_tokens(),
                           options_.slots.num_blocks * options_.slots.block_tokens);
  }
  if (generation->deadline() <= clock_.Now()) return DeadlineExceeded("the deadline passed before the request was queued");
  // A request that can run at once needs no place in the queue.
  Admit();
  const auto for_rows = std::count_if(queue_.begin(), queue_.end(), [&](const Waiting& queued) { return WaitsForRows(queued); });
  const int64_t free_places = options_.max_running - num_running();
  const bool runs_at_once = lost_.ok() && num_queued() == for_rows && for_rows < free_places;
  const auto held =
      std::count_if(queue_.begin(), queue_.end(), [](const Waiting& queued) { return queued.cause != Cause::kNew; });
  const GenerationOwner& owner = generation->owner();
  const auto of_owner = std::count_if(queue_.begin(), queue_.end(), [&](const Waiting& queued) {
    return queued.cause == Cause::kNew && queued.generation->owner().name == owner.name;
  });
  if (!runs_at_once && owner.max_queued > 0 && of_owner >= owner.max_queued) {
    return ResourceExhausted("%d requests of %s are waiting, its share of the queue", of_owner, owner.name);
  }
  const auto waiting = num_queued() - held - std::min<int64_t>(for_rows, free_places);
  if (!runs_at_once && waiting >= options_.max_queued && !FreeAPlaceInQueue(of_owner)) {
    return ResourceExhausted("the queue is full: %d requests are waiting and %d are running", waiting, num_running() + held);
  }
  Welcome(owner.name);
  queue_.push_back({.generation = std::move(generation),
                    .past = {.arrival = ++last_arrival_, .patience_ends = clock_.Now() + options_.resume_patience}});
  Admit();
  return absl::OkStatus();
}

bool BatchScheduler::FreeAPlaceInQueue(int64_t of_owner) {
  std::map<std::string, int64_t> waiting;
  for (const Waiting& queued : queue_) {
    if (queued.cause == Cause::kNew) ++waiting[queued.generation->owner().name];
  }
  const auto most =
      std::max_element(waiting.begin(), waiting.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == waiting.end() || most->second <= of_owner + 1) return false;
  const auto rank = [&](const Waiting& queued) {  // the highest is dropped
    const bool counts = queued.cause == Cause::kNew && queued.generation->owner().name == most->first;
    return std::tuple(counts, queued.generation->priority(), queued.past.arrival);
  };
  const auto last =
      std::max_element(queue_.begin(), queue_.end(), [&](const Waiting& a, const Waiting& b) { return rank(a) < rank(b); });
  const std::shared_ptr<Generation> dropped = last->generation;
  queue_.erase(last);
  dropped->OnFailed(
      ResourceExhausted("the queue is full, and %d of its %d places were taken by requests of %s; the last of these "
                        "made room for a request of another key",
                        most->second, options_.max_queued, most->first));
  return true;
}

void BatchScheduler::CountOwners() {
  const absl::Time now = clock_.Now();
  for (auto& [name, owner] : owners_) owner.running = owner.waiting = 0;
  for (const auto& running : running_) ++owners_[running->generation->owner().name].running;
  for (const Waiting& queued : queue_) ++owners_[queued.generation->owner().name].waiting;
  std::erase_if(owners_, [&](const auto& entry) {
    return entry.second.running + entry.second.waiting == 0 && entry.second.seen + kPresence <= now;
  });
}

void BatchScheduler::Welcome(const std::string& name) {
  CountOwners();
  int64_t least = std::numeric_limits<int64_t>::max();  // served of those that are here
  for (const auto& [other, owner] : owners_) {
    if (owner.running + owner.waiting > 0) least = std::min(least, owner.served);
  }
  Owner& owner = owners_[name];
  owner.seen = clock_.Now();
  const bool comes = owner.running + owner.waiting == 0;
  if (comes && least < std::numeric_limits<int64_t>::max()) owner.served = std::max(owner.served, least);
}

int64_t BatchScheduler::Share() const {
  return std::max<int64_t>(1, options_.max_running / std::max<int64_t>(1, static_cast<int64_t>(owners_.size())));
}

int64_t BatchScheduler::MayRun(const std::string& name) const {
  const auto kept = std::count_if(owners_.begin(), owners_.end(), [&](const auto& entry) {
    return entry.first != name && entry.second.running + entry.second.waiting == 0;
  });
  return std::max<int64_t>(Share(), options_.max_running - kept);
}

std::optional<size_t> BatchScheduler::NextInLine() const {
  if (queue_.front().cause == Cause::kHeld) return 0;  // all of them had room at once before, and have again
  // Of two owners with the same tokens, the one with fewer requests running goes first.
  const auto rank = [&](const std::string& name) {
    const Owner& owner = owners_.at(name);
    return std::tuple(owner.running >= Share(), owner.served, owner.running);
  };
  std::optional<size_t> next;
  for (size_t i = 0; i < queue_.size(); ++i) {
    const Generation& generation = *queue_[i].generation;
    const std::string& name = generation.owner().name;
    if (owners_.at(name).running >= MayRun(name)) continue;
    if (next) {
      const Generation& best = *queue_[*next].generation;
      const bool same = name == best.owner().name;
      if (same ? generation.priority() >= best.priority() : rank(name) >= rank(best.owner().name)) continue;
    }
    if (!WaitsForRows(queue_[i])) next = i;
  }
  return next;
}

bool BatchScheduler::WaitsForRows(const Waiting& waiting) const {
  const Generation& generation = *waiting.generation;
  if (waiting.cause != Cause::kNew || !generation.may_reuse_prefix()) return false;
  return std::any_of(running_.begin(), running_.end(), [&](const std::shared_ptr<Running>& running) {
    return running->generation->owner().cache_domain == generation.owner().cache_domain &&
           slots_.WorthWaitingFor(running->lease.slot, running->generation->tokens().first(running->known_tokens),
                                  running->submitted, generation.tokens());
  });
}

bool BatchScheduler::MakeRoomFor(const Waiting& waiting) {
  const Generation& generation = *waiting.generation;
  // Blocks that it shares with a running request need no room. They do when that request is the one to be suspended.
  const int64_t needed = slots_.BlocksFor(generation.reserve_tokens());
  int64_t free_blocks = slots_.free_blocks(), free_places = options_.max_running - num_running();
  if (free_places > 0 && free_blocks >= needed) return true;
  if (free_places > 0 && free_blocks >= slots_.BlocksNeeded(generation.tokens(), generation.reserve_tokens(),
                                                            generation.may_reuse_prefix(), generation.owner().cache_domain)) {
    return true;
  }
  if (waiting.cause == Cause::kHeld) return false;
  const std::string& name = waiting.generation->owner().name;
  std::map<std::string, int64_t> running;
  for (const auto& [other, owner] : owners_) running[other] = owner.running;
  if (running[name] >= Share()) return false;
  std::vector<std::shared_ptr<Running>> rest = running_, suspended;
  while (free_places <= 0 || free_blocks < needed) {
    const auto rank = [&](const std::shared_ptr<Running>& each) {  // of the owner that has most, the youngest
      return std::pair(running[each->generation->owner().name], each->past.arrival);
    };
    const auto next = std::max_element(rest.begin(), rest.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
    if (next == rest.end() || rank(*next).first <= Share()) return false;  // nobody is suspended for nothing
    --running[(*next)->generation->owner().name];
    ++free_places;
    free_blocks += slots_.BlocksOf((*next)->lease.slot);
    suspended.push_back(*next);
    rest.erase(next);
  }
  for (const std::shared_ptr<Running>& each : suspended) Suspend(each);
  RemoveEnded();
  CountOwners();
  return true;
}

void BatchScheduler::Suspend(const std::shared_ptr<Running>& running) {
  End(*running);
  Past past = running->past;
  if (running->rows_done > past.rows_done) {
    past.rows_done = running->rows_done;
    past.failures = 0;
    past.ran = false;
  }
  const std::string& name = running->generation->owner().name;
  const auto place = std::find_if(queue_.begin(), queue_.end(), [&](const Waiting& queued) {
    return queued.cause != Cause::kHeld && queued.generation->owner().name == name && queued.past.arrival > past.arrival;
  });
  ++num_suspended_;
  running->generation->OnSuspended();
  queue_.insert(place, {.generation = running->generation, .past = past, .cause = Cause::kSuspended});
}

bool BatchScheduler::Place(Waiting* waiting) {
  if (!MakeRoomFor(*waiting)) return false;
  Generation& generation = *waiting->generation;
  const std::span<const int32_t> tokens = generation.tokens();
  absl::StatusOr<KvSlots::Lease> lease =
      slots_.Acquire(tokens, generation.reserve_tokens(), generation.may_reuse_prefix(), generation.owner().cache_domain);
  if (!lease.ok()) return false;
  auto running = std::make_shared<Running>();
  running->generation = std::move(waiting->generation);
  running->past = waiting->past;
  running->known_tokens = static_cast<int64_t>(tokens.size());
  running->begun = waiting->cause == Cause::kSuspended;
  running->submitted = lease->cached_tokens;
  running->lease = *std::move(lease);
  running_.push_back(running);
  switch (waiting->cause) {
    case Cause::kNew:
      owners_[generation.owner().name].served += generation.reserve_tokens();
      generation.OnAdmitted(running->lease.cached_tokens);
      break;
    case Cause::kHeld:
      ++num_resumed_;
      generation.OnResumed();
      break;
    case Cause::kSuspended:
      break;
  }
  return true;
}

void BatchScheduler::Admit() {
  if (!lost_.ok() || queue_.empty()) return;
  CountOwners();
  while (!queue_.empty()) {
    // Requests that come and go during a long step cannot fill a message.
    if (num_in_flight() > 0 && slots_.num_moves() >= kMaxWaitingMoves) return;
    const std::optional<size_t> index = NextInLine();
    if (!index) return;
    const auto next = queue_.begin() + static_cast<std::ptrdiff_t>(*index);
    Waiting waiting = std::move(*next);
    queue_.erase(next);
    if (!Place(&waiting)) {
      // Until a running request ends; those behind it wait too, or a large one would wait for ever.
      queue_.insert(queue_.begin() + static_cast<std::ptrdiff_t>(*index), std::move(waiting));
      return;
    }
    CountOwners();
  }
}

void BatchScheduler::End(Running& running) {
  running.ended = true;
  const auto owner = owners_.find(running.generation->owner().name);
  if (owner != owners_.end()) owner->second.seen = clock_.Now();
  slots_.Release(running.lease.slot, running.generation->tokens().first(running.submitted));
}

void BatchScheduler::RemoveEnded() {
  std::erase_if(running_, [](const std::shared_ptr<Running>& running) { return running->ended; });
}

void BatchScheduler::Cancel(const Generation* generation) {
  std::erase_if(queue_, [&](const Waiting& queued) { return queued.generation.get() == generation; });
  for (const std::shared_ptr<Running>& running : running_) {
    if (running->generation.get() == generation) End(*running);
  }
  RemoveEnded();
}

void BatchScheduler::ExpireDeadlines() {
  const absl::Time now = clock_.Now();
  std::erase_if(queue_, [&](const Waiting& queued) {
    if (queued.generation->deadline() <= now) {
      queued.generation->OnFailed(DeadlineExceeded("the deadline passed in the queue"));
      return true;
    }
    if (lost_.ok() || queued.past.patience_ends > now) return false;
    queued.generation->OnFailed(Unavailable("%s; waited %s for the cluster to serve again", lost_.message(),
                                            absl::FormatDuration(options_.resume_patience)));
    return true;
  });
  for (const Waiting& queued : queue_) {
    if (queued.generation->unsent_until() <= now) queued.generation->SendUnsent();
  }
  for (const std::shared_ptr<Running>& running : running_) {
    if (running->generation->unsent_until() <= now) running->generation->SendUnsent();
    if (running->generation->deadline() > now) continue;
    End(*running);
    running->generation->OnFailed(
        DeadlineExceeded("the deadline passed after %d of %d tokens", running->submitted, running->generation->reserve_tokens()));
  }
  RemoveEnded();
}

absl::Time BatchScheduler::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const Waiting& queued : queue_) {
    next = std::min({next, queued.generation->deadline(), queued.generation->unsent_until()});
    if (!lost_.ok()) next = std::min(next, queued.past.patience_ends);
  }
  for (const std::shared_ptr<Running>& running : running_) {
    next = std::min({next, running->generation->deadline(), running->generation->unsent_until()});
  }
  return next;
}

int64_t BatchScheduler::AddRows(const std::shared_ptr<Running>& running, int64_t max_tokens, int64_t* logits_left, StepPlan* step,
                                InFlight* in_flight) {
  const Generation& generation = *running->generation;
  const std::span<const int32_t> tokens = generation.tokens();
  const int64_t first = running->submitted;
  int64_t end = std::min<int64_t>(static_cast<int64_t>(tokens.size()), first + max_tokens);
  end = slots_.StepEnd(running->lease.slot, first, end);
  std::vector<RowLogits> logits;
  for (int64_t position = first; position < end; ++position) {
    const std::optional<LogitsRequest> wanted = generation.LogitsAt(position);
    if (!wanted) continue;
    const int64_t values = wanted->top_n >= options_.vocab_size ? options_.vocab_size : kRowOverhead + 2 * wanted->top_n;
    // One row always fits, or a vocabulary above the limit could never be sampled from.
    if (values > *logits_left && !(step->sequences.empty() && logits.empty())) {
      end = position;
      break;
    }
    *logits_left = std::max<int64_t>(0, *logits_left - values);
    logits.push_back({.offset = position - first, .wanted = *wanted});
  }
  if (end <= first) return 0;

  const int64_t num_tokens = end - first;
  in_flight->parts.push_back(
      {.running = running, .first_position = first, .num_tokens = num_tokens, .num_logits = static_cast<int64_t>(logits.size())});
  step->sequences.push_back({.slot = running->lease.slot,
                             .decoding = first >= running->known_tokens,
                             .first_position = first,
                             .token_ids = {tokens.begin() + first, tokens.begin() + end},
                             .blocks = slots_.Plan(running->lease.slot, tokens.first(end), first),
                             .logits = std::move(logits)});
  running->submitted = end;
  if (!std::exchange(running->begun, true) && generation.forgets_experts()) step->forget_experts = true;
  running->turn = ++last_turn_;
  return num_tokens;
}

std::map<std::string, int64_t> BatchScheduler::RowsOfPrompts(int64_t rows) const {
  std::map<std::string, int64_t> wanted;  // by each owner that runs
  for (const std::shared_ptr<Running>& running : running_) {
    wanted[running->generation->owner().name] += std::max<int64_t>(0, running->known_tokens - running->submitted);
  }
  std::vector<std::pair<int64_t, std::string>> prompts;
  for (const auto& [owner, num] : wanted) {
    if (num > 0) prompts.emplace_back(num, owner);
  }
  std::map<std::string, int64_t> given;
  // Owners that only decode have a share as well: it is left free, so that their next tokens come sooner.
  const auto num_owners = static_cast<int64_t>(wanted.size()), num_prompts = static_cast<int64_t>(prompts.size());
  int64_t left = std::max(num_prompts, rows * num_prompts / num_owners);
  std::sort(prompts.begin(), prompts.end());  // those that want least leave the others what they do not need
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t share = left / static_cast<int64_t>(prompts.size() - i);
    left -= given[prompts[i].second] = std::min(prompts[i].first, share);
  }
  return given;
}

std::optional<StepPlan> BatchScheduler::NextStep(int max_in_flight, double step_cost_rows) {
  Admit();
  if (num_in_flight() >= max_in_flight) return std::nullopt;
  StepPlan step{.id = StepId(last_step_ + 1)};
  InFlight in_flight{.id = step.id};
  int64_t logits_left = options_.max_logits;
  int64_t rows_left = options_.max_batch_tokens;

  std::vector<std::shared_ptr<Running>> prompts, decoding;
  bool anyone_decodes = false;
  int64_t rows_of_prompts = 0;  // in all their steps, so that these come out equal
  for (const std::shared_ptr<Running>& running : running_) {
    if (running->submitted < running->known_tokens) {
      prompts.push_back(running);
      rows_of_prompts += running->known_tokens - running->lease.cached_tokens;
      continue;
    }
    anyone_decodes = true;
    const bool next_token_known = running->submitted < static_cast<int64_t>(running->generation->tokens().size());
    if (next_token_known) decoding.push_back(running);
  }
  // Requests that a full step left out go first into the next.
  std::stable_sort(decoding.begin(), decoding.end(), [](const auto& a, const auto& b) { return a->turn < b->turn; });
  std::stable_sort(prompts.begin(), prompts.end(),
                   [](const auto& a, const auto& b) { return a->generation->priority() < b->generation->priority(); });
  const auto first_in_turn = std::stable_partition(prompts.begin(), prompts.end(), [](const auto& p) { return p->left_out; });

  int64_t prompt_rows = std::min(rows_left, StepRows(rows_of_prompts, max_in_flight, step_cost_rows));
  if (anyone_decodes) prompt_rows = std::min(prompt_rows, options_.micro_batch_tokens);
  std::map<std::string, int64_t> owner_rows;
  if (!prompts.empty()) owner_rows = RowsOfPrompts(prompt_rows);
  const auto add_prompt = [&](const std::shared_ptr<Running>& running) {
    int64_t& prompt_rows = owner_rows[running->generation->owner().name];
    const int64_t in_prompt_left = running->known_tokens - running->submitted;
    const int64_t wanted = std::min({in_prompt_left, prompt_rows, rows_left});
    if (wanted == 0) return;
    const int64_t added = AddRows(running, wanted, &logits_left, &step, &in_flight);
    running->left_out = added == 0;
    prompt_rows -= added;
    rows_left -= added;
  };
  std::for_each(prompts.begin(), first_in_turn, add_prompt);
  for (const std::shared_ptr<Running>& running : decoding) {
    if (rows_left == 0) break;
    rows_left -= AddRows(running, 1, &logits_left, &step, &in_flight);
  }
  std::for_each(first_in_turn, prompts.end(), add_prompt);
  if (step.sequences.empty()) return std::nullopt;
  step.moves = slots_.TakeMoves();
  last_step_ = step.id.value();
  in_flight_.push_back(std::move(in_flight));
  return step;
}

void BatchScheduler::OnStepDone(StepId id, StepOutcome outcome) {
  if (in_flight_.empty() || in_flight_.front().id != id) return;
  const InFlight done = std::move(in_flight_.front());
  in_flight_.pop_front();
  int64_t next_logits = 0;
  for (const Part& part : done.parts) {
    const std::span<LogitsResult> logits = std::span(outcome.logits).subspan(next_logits, part.num_logits);
    next_logits += part.num_logits;
    if (part.running->ended) continue;
    part.running->rows_done = part.first_position + part.num_tokens;
    if (part.running->generation->OnRows(part.first_position, part.num_tokens, logits, outcome.experts)) End(*part.running);
  }
  RemoveEnded();
}

void BatchScheduler::FailAll(const absl::Status& status) {
  in_flight_.clear();
  slots_.Clear();
  const auto running = std::exchange(running_, {});
  const auto queue = std::exchange(queue_, {});
  for (const std::shared_ptr<Running>& each : running) each->generation->OnFailed(status);
  for (const Waiting& each : queue) each.generation->OnFailed(status);
}

void BatchScheduler::LoseCaches(const absl::Status& status) {
  in_flight_.clear();
  slots_.Clear();
  const bool first_loss = lost_.ok();  // since the caches were there
  lost_ = status;
  const auto running = std::exchange(running_, {});
  auto queue = std::exchange(queue_, {});
  const absl::Time patience_ends = clock_.Now() + options_.resume_patience;
  for (const std::shared_ptr<Running>& each : running) {
    Past past = each->past;
    const bool got_on = each->rows_done > past.rows_done;
    if (got_on || !past.ran) past.patience_ends = patience_ends;
    if (got_on) past.failures = 0;
    if (absl::IsInternal(status)) ++past.failures;
    past.rows_done = std::max(past.rows_done, each->rows_done);
    past.ran = true;
    Hold({.generation = std::move(each->generation), .past = past, .cause = Cause::kHeld}, status);
  }
  for (Waiting& each : queue) {
    if (first_loss && each.cause != Cause::kHeld) each.past.patience_ends = patience_ends;
    Hold(std::move(each), status);
  }
}

void BatchScheduler::Hold(Waiting waiting, const absl::Status& status) {
  if (Holds(*waiting.generation) && waiting.past.failures < kMaxFailures) {
    queue_.push_back(std::move(waiting));
  } else {
    waiting.generation->OnFailed(status);
  }
}

}  // namespace ferry
