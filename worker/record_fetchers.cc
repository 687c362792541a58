#include "worker/record_fetchers.h"

#include <utility>

#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr int kMaxFetchAttempts = 3;

}  // namespace

absl::StatusOr<std::unique_ptr<RecordFetchers>> RecordFetchers::Start(const ArenaLayout* arena, Ops* ops, int num_buffers,
                                                                      std::vector<std::unique_ptr<RecordSource>> sources) {
  std::unique_ptr<RecordFetchers> fetchers(new RecordFetchers(arena, ops, num_buffers, std::move(sources)));
  for (const std::unique_ptr<RecordSource>& source : fetchers->sources_) {
    ASSIGN_OR_RETURN(std::thread thread, StartThread([raw = fetchers.get(), source = source.get()] { raw->Run(*source); }));
    fetchers->threads_.push_back(std::move(thread));
  }
  return fetchers;
}

RecordFetchers::RecordFetchers(const ArenaLayout* arena, Ops* ops, int num_buffers,
                               std::vector<std::unique_ptr<RecordSource>> sources)
    : arena_(*arena),
      ops_(*ops),
      sources_(std::move(sources)),
      record_bytes_(arena->max_record_bytes()),
      staging_(new (std::align_val_t{kRecordAlignment}) std::byte[record_bytes_ * num_buffers]) {
  const std::span<const std::byte> region(staging_.get(), record_bytes_ * num_buffers);
  if (const absl::Status pinned = ops_.PinHost(region, /*read_only=*/false); pinned.ok()) {
    pinned_ = region;
  } else {
    spdlog::warn("buffers for expert records could not be pinned, copies will be slower: {}", pinned.ToString());
  }
  for (int i = 0; i < num_buffers; ++i) free_buffers_.push_back(staging_.get() + i * record_bytes_);
}

RecordFetchers::~RecordFetchers() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (const std::unique_ptr<RecordSource>& source : sources_) source->Stop();
  for (std::thread& thread : threads_) thread.join();
  if (!pinned_.empty()) ops_.UnpinHost(pinned_);
}

void RecordFetchers::SetStep(uint64_t step) {
  const std::lock_guard lock(mutex_);
  step_ = step;
}

absl::Status RecordFetchers::Ask(ExpertId id) {
  RETURN_IF_ERROR(arena_.OffsetOf(id.layer, id.expert).status());
  const std::lock_guard lock(mutex_);
  const auto [place, is_new] = records_.try_emplace(id);
  if (!is_new) return absl::OkStatus();
  place->second = std::make_shared<Record>();
  place->second->id = id;
  wanted_.push_back(place->second);
  changed_.notify_all();
  return absl::OkStatus();
}

bool RecordFetchers::Here(ExpertId id) {
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(id);
  return found == records_.end() || found->second->done;
}

absl::StatusOr<std::span<const std::byte>> RecordFetchers::Wait(ExpertId id, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto found = records_.find(id);
  if (found == records_.end()) return FailedPrecondition("expert %d of layer %d was not asked for", id.expert, id.layer);
  const std::shared_ptr<Record> record = found->second;
  if (!changed_.wait_until(lock, deadline.time(), [&] { return record->done; })) {
    return DeadlineExceeded("the record of expert %d of layer %d did not come in time", id.expert, id.layer);
  }
  RETURN_IF_ERROR(record->status);
  return std::span<const std::byte>(record->buffer, arena_.layer(id.layer).bytes);
}

void RecordFetchers::Release(ExpertId id) {
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(id);
  if (found == records_.end()) return;
  const std::shared_ptr<Record> record = std::move(found->second);
  records_.erase(found);
  record->released = true;
  std::erase(wanted_, record);
  if (record->coming != nullptr) {
    record->coming->GiveUp();  // its thread gives the buffer back
  } else if (record->buffer != nullptr) {
    free_buffers_.push_back(std::exchange(record->buffer, nullptr));
  }
  changed_.notify_all();
}

// Takes the next wanted record when a buffer is free.
void RecordFetchers::Run(RecordSource& source) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || (!wanted_.empty() && !free_buffers_.empty()); });
    if (stopping_) return;
    const std::shared_ptr<Record> record = std::move(wanted_.front());
    wanted_.pop_front();
    record->buffer = free_buffers_.front();
    free_buffers_.pop_front();
    const std::span<std::byte> buffer(record->buffer, static_cast<size_t>(arena_.layer(record->id.layer).bytes));
    absl::Status status;
    for (int attempt = 0; attempt < kMaxFetchAttempts; ++attempt) {
      record->coming = &source;
      const uint64_t step = step_;
      lock.unlock();
      status = source.Fetch(step, record->id, buffer);
      lock.lock();
      record->coming = nullptr;
      // A later step of this worker may have overtaken the request, which made it stale on arrival.
      if (status.code() != absl::StatusCode::kAborted || step_ == step || record->released || stopping_) break;
    }
    record->status = status;
    record->done = true;
    if (record->released) free_buffers_.push_back(std::exchange(record->buffer, nullptr));
    changed_.notify_all();
  }
}

}  // namespace ferry
