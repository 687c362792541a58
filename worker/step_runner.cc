#include "worker/step_runner.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "common/deadline.h"
#include "common/log.h"
#include "common/thread_limit.h"
#include "proto/expert_counters.h"
#include "worker/stage_link_devices.h"

namespace ferry {
namespace {

static_assert(std::endian::native == std::endian::little, "logits and hidden states cross the wire little-endian");

constexpr size_t kMaxQueued = 256;  // far above the steps a pipeline has in flight: a bound, not a schedule

internal::v1::StepResponse ResponseFor(const internal::v1::StepRequest& request, const absl::Status& status) {
  internal::v1::StepResponse response;
  response.set_epoch(request.epoch());
  response.set_step(request.step());
  response.set_code(static_cast<int32_t>(status.code()));
  response.set_message(std::string(status.message()));
  return response;
}

internal::v1::TraceSpan::Track TrackToProto(TraceSpan::Track track) {
  switch (track) {
    case TraceSpan::Track::kHost:
      return internal::v1::TraceSpan::HOST;
    case TraceSpan::Track::kCompute:
      return internal::v1::TraceSpan::COMPUTE;
    case TraceSpan::Track::kCopy:
      return internal::v1::TraceSpan::COPY;
  }
  return internal::v1::TraceSpan::HOST;
}

internal::v1::StepResponse ResponseFor(const internal::v1::StepRequest& request, const StageResult& result) {
  internal::v1::StepResponse response = ResponseFor(request, absl::OkStatus());
  for (const LogitsResult& logits : result.logits) {
    internal::v1::LogitsRow* const row = response.add_logits();
    row->set_log_sum_exp(logits.log_sum_exp);
    row->set_target_logit(logits.target_logit);
    row->mutable_ids()->Assign(logits.ids.begin(), logits.ids.end());
    row->set_logits(logits.logits.data(), logits.logits.size() * sizeof(float));
  }
  *response.mutable_experts() = result.experts;
  response.set_seconds(result.seconds);
  response.set_busy_seconds(result.busy_seconds);
  for (const TraceSpan& span : result.spans) {
    internal::v1::TraceSpan* const out = response.add_spans();
    out->set_name(span.name);
    out->set_track(TrackToProto(span.track));
    out->set_layer(static_cast<int32_t>(span.layer));
    out->set_begin_unix_ns(absl::ToUnixNanos(span.begin));
    out->set_duration_ns(absl::ToInt64Nanoseconds(span.end - span.begin));
  }
  return response;
}

// CheckStep refuses a timeout that is no positive number; until then such a step has no time.
absl::Duration TimeoutOf(const internal::v1::StepRequest& request, const StepLimits& limits) {
  if (!(request.timeout_seconds() > 0)) return absl::ZeroDuration();
  return std::min(absl::Seconds(request.timeout_seconds()), limits.max_timeout);
}

}  // namespace

StepRunner::StepRunner(Stage* stage, ActivationQueue* activations, OnFailed on_failed, absl::Duration awake)
    : stage_(*stage), activations_(*activations), on_failed_(std::move(on_failed)), limits_(stage->limits()) {
  wait_.StayAwake(awake);
}

absl::StatusOr<std::unique_ptr<StepRunner>> StepRunner::Create(Stage* stage, ActivationQueue* activations, OnFailed on_failed,
                                                               absl::Duration awake) {
  std::unique_ptr<StepRunner> runner(new StepRunner(stage, activations, std::move(on_failed), awake));
  ASSIGN_OR_RETURN(runner->thread_, StartThread([raw = runner.get()] { raw->Loop(); }));
  return runner;
}

StepRunner::~StepRunner() {
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
    AbortLocked(lock);
    Call();
  }
  if (thread_.joinable()) thread_.join();
}

uint64_t StepRunner::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

v1::ExpertCounters StepRunner::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

// Ends the epoch. The lock is given up meanwhile.
void StepRunner::AbortLocked(std::unique_lock<std::mutex>& lock) {
  epoch_ = 0;
  stop_.request_stop();
  activations_.Abort();
  if (source_ != nullptr) source_->Abort();
  if (sink_ != nullptr) sink_->Abort();
  std::deque<Queued> given_up = std::exchange(queue_, {});
  lock.unlock();
  for (const Queued& queued : given_up) queued.answer(ResponseFor(queued.request, Aborted("the epoch is over")));
  lock.lock();
}

absl::Status StepRunner::EndEpochLocked(uint64_t next_epoch, Deadline deadline, std::unique_lock<std::mutex>& lock) {
  if (next_epoch <= last_epoch_) return Aborted("epoch is %d, want one after %d", next_epoch, last_epoch_);
  AbortLocked(lock);
  if (!changed_.wait_until(lock, deadline.time(), [&] { return !running_; })) {
    return DeadlineExceeded("a step of epoch %d is still running", last_epoch_);
  }
  if (next_epoch <= last_epoch_ || ending_) return Aborted("epoch is %d, want one after %d", next_epoch, last_epoch_);
  if (job_ != nullptr) {  // it has not started, and would use what goes now
    job_->done = true;
    job_ = nullptr;
    changed_.notify_all();
  }
  source_ = nullptr;
  has_device_way_ = false;
  sink_ = nullptr;
  DropHelp();
  return absl::OkStatus();
}

absl::Status StepRunner::EndEpochBefore(uint64_t epoch, Deadline deadline) {
  std::unique_lock lock(mutex_);
  return EndEpochLocked(epoch, deadline, lock);
}

absl::Status StepRunner::BeginEpoch(uint64_t epoch, std::unique_ptr<ActivationSink> next, Deadline deadline) {
  std::unique_lock lock(mutex_);
  RETURN_IF_ERROR(EndEpochLocked(epoch, deadline, lock));
  epoch_ = last_epoch_ = epoch;
  next_step_ = 1;
  sink_ = std::move(next);
  stop_ = std::stop_source();
  activations_.BeginEpoch(epoch);
  return absl::OkStatus();
}

absl::Status StepRunner::CheckBeforeStepsLocked(uint64_t epoch) const {
  if (epoch == 0 || epoch != epoch_) return Aborted("epoch is %d, want %d", epoch, epoch_);
  if (next_step_ > 1) return FailedPrecondition("epoch %d has had steps already", epoch);
  if (job_ != nullptr) return FailedPrecondition("a measurement runs in epoch %d", epoch);
  return absl::OkStatus();
}

absl::Status StepRunner::ReceiveFrom(uint64_t epoch, std::unique_ptr<ActivationSource> previous) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(CheckBeforeStepsLocked(epoch));
  source_ = std::move(previous);
  has_device_way_ = false;
  return absl::OkStatus();
}

absl::Status StepRunner::ReceiveFromDevice(uint64_t epoch, std::unique_ptr<DevicePeer> peer, int64_t n_embd) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(CheckBeforeStepsLocked(epoch));
  if (has_device_way_) return FailedPrecondition("epoch %d has a way between the devices already", epoch);
  has_device_way_ = true;
  ActivationSource* const announcer = source_ != nullptr ? source_.get() : &activations_;
  source_ = std::make_unique<DeviceSource>(announcer, std::move(source_), std::move(peer), n_embd);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<StepRunner::Job>> StepRunner::QueueJobLocked(std::function<void()> run) {
  if (job_ != nullptr) return FailedPrecondition("another measurement runs");
  job_ = std::make_shared<Job>();
  job_->run = std::move(run);
  Call();
  return job_;
}

absl::Status StepRunner::RunBeforeSteps(uint64_t epoch, const std::function<absl::Status(ActivationSource*)>& job,
                                        Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (epoch != 0 || epoch_ != 0) RETURN_IF_ERROR(CheckBeforeStepsLocked(epoch));
  absl::Status result = Aborted("the measurement was given up");
  ASSIGN_OR_RETURN(const std::shared_ptr<Job> queued, QueueJobLocked([&, source = source_.get()] { result = job(source); }));
  const bool in_time = changed_.wait_until(lock, deadline.time(), [&] { return queued->started || queued->done || ending_; });
  if (!queued->started) {
    if (job_ == queued) job_ = nullptr;
    return in_time ? result : DeadlineExceeded("the worker's device is busy");
  }
  changed_.wait(lock, [&] { return queued->done; });
  return result;
}

absl::Status StepRunner::HelpOver(uint64_t epoch, std::shared_ptr<HelpBoards> boards) {
  const std::lock_guard lock(mutex_);
  if (epoch == 0 || epoch != epoch_) return Aborted("epoch is %d, want %d", epoch, epoch_);
  if (running_ || next_step_ > 1) return FailedPrecondition("epoch %d has had steps already", epoch);
  DropHelp();
  stage_.SetBoards(boards);
  help_published_ = false;
  Call();
  help_ = std::move(boards);
  return absl::OkStatus();
}

void StepRunner::DropHelp() {
  if (help_ == nullptr) return;
  stage_.SetBoards(nullptr);
  help_->Wake();  // the compute thread may sleep on their bell
  help_ = nullptr;
  help_published_ = true;
}

absl::StatusOr<ExpertCache::Measurement> StepRunner::MeasureLink(absl::Duration time, Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (epoch_ != 0) return FailedPrecondition("epoch %d is current: the link is measured between epochs", epoch_);
  const auto measured = std::make_shared<absl::StatusOr<ExpertCache::Measurement>>(Aborted("the measurement was given up"));
  ASSIGN_OR_RETURN(const std::shared_ptr<Job> job,
                   QueueJobLocked([this, measured, time] { *measured = stage_.MeasureLink(time); }));
  if (!changed_.wait_until(lock, deadline.time(), [&] { return job->done || ending_; })) {
    return DeadlineExceeded("measuring the link takes too long");
  }
  if (!job->done) return Aborted("the worker is ending");
  return *measured;
}

void StepRunner::Submit(internal::v1::StepRequest request, Answer answer) {
  absl::Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (epoch_ == 0 || request.epoch() != epoch_) {
      refused = Aborted("epoch is %d, want %d", request.epoch(), epoch_);
    } else if (queue_.size() >= kMaxQueued) {
      refused = ResourceExhausted("%d steps are waiting", queue_.size());
    } else {
      const Deadline deadline = Deadline::In(TimeoutOf(request, limits_));
      queue_.push_back({std::move(request), std::move(answer), deadline});
      Call();
      return;
    }
  }
  answer(ResponseFor(request, refused));
}

void StepRunner::AwaitCall(std::unique_lock<std::mutex>& lock) {
  called_.store(false, std::memory_order_relaxed);
  lock.unlock();
  wait_.Until(
      Deadline::Never(), [this] { return called_.load(std::memory_order_relaxed); },
      [this](Deadline until) {
        std::unique_lock sleeping(mutex_);
        changed_.wait_until(sleeping, until.time(), [this] { return HasCall(); });
      });
  lock.lock();
}

// The same while this worker offers help.
void StepRunner::AwaitCallOrHelp(std::unique_lock<std::mutex>& lock) {
  const std::shared_ptr<HelpBoards> help = help_;
  called_.store(false, std::memory_order_relaxed);
  lock.unlock();
  help->own().SetAvailable(true);
  const auto called = [&] { return called_ || help->Called(); };
  wait_.Until(Deadline::Never(), called, [&](Deadline until) {
    sleeps_on_bell_ = true;
    const uint32_t seen = help->own().bell();
    if (!called()) help->own().WaitForBell(seen, until);
    sleeps_on_bell_ = false;
  });
  help->own().SetAvailable(false);
  lock.lock();
}

void StepRunner::ServeHelp(std::unique_lock<std::mutex>& lock) {
  const std::shared_ptr<HelpBoards> help = help_;
  const bool publish = !std::exchange(help_published_, true);
  running_ = true;
  lock.unlock();
  if (publish) stage_.PublishHelpMemory();
  stage_.ServeHelp();
  lock.lock();
  running_ = false;
  changed_.notify_all();
}

void StepRunner::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    while (!HasCall()) {
      if (help_ != nullptr && stage_.helps()) {
        AwaitCallOrHelp(lock);
      } else {
        AwaitCall(lock);
      }
    }
    if (ending_) return;
    if (!help_published_ || HelpWanted()) {
      ServeHelp(lock);
      continue;
    }
    if (job_ != nullptr) {
      const std::shared_ptr<Job> job = job_;
      running_ = job->started = true;
      changed_.notify_all();
      lock.unlock();
      job->run();
      lock.lock();
      running_ = false;
      job->done = true;
      job_ = nullptr;
      changed_.notify_all();
      continue;
    }
    const Queued queued = std::move(queue_.front());
    queue_.pop_front();
    running_ = true;
    lock.unlock();
    const absl::StatusOr<StageResult> result = RunOne(queued);
    if (!result.ok()) {
      spdlog::warn("step {} of epoch {} failed: {}", queued.request.step(), queued.request.epoch(), result.status().ToString());
      if (on_failed_ && !absl::IsAborted(result.status())) on_failed_(result.status());
    }
    queued.answer(result.ok() ? ResponseFor(queued.request, *result) : ResponseFor(queued.request, result.status()));
    lock.lock();
    running_ = false;
    if (result.ok()) AddCounters(result->experts, &counters_);
    changed_.notify_all();
  }
}

absl::StatusOr<StageResult> StepRunner::RunOne(const Queued& queued) {
  std::stop_token stop;
  ActivationSource* source = nullptr;
  ActivationSink* sink = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (queued.request.epoch() != epoch_) return Aborted("epoch is %d, want %d", queued.request.epoch(), epoch_);
    if (queued.request.step() < next_step_) return Aborted("step %d is over, want %d", queued.request.step(), next_step_);
    if (queued.request.step() > next_step_) {
      return InvalidArgument("step is %d, want %d: steps have no gaps", queued.request.step(), next_step_);
    }
    ++next_step_;
    stop = stop_.get_token();
    source = source_ != nullptr ? source_.get() : &activations_;
    sink = sink_.get();
  }
  const auto run = [&]() -> absl::StatusOr<StageResult> {
    ASSIGN_OR_RETURN(const StageStep step, CheckStep(queued.request, limits_));
    return stage_.Run(step, queued.deadline, source, sink, stop);
  };
  absl::StatusOr<StageResult> result = run();
  if (!result.ok() && sink != nullptr && !stop.stop_requested()) {
    const absl::Status told =
        sink->SendFailure(queued.request.step(), std::string(result.status().message()), Deadline::In(absl::Seconds(1)));
    if (!told.ok()) spdlog::warn("the next worker was not told of the failure: {}", told.ToString());
  }
  return result;
}

}  // namespace ferry
