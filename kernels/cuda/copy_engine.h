#pragma once

// Host-to-device copies on a queue of their own, and the pinned host memory that they read at full rate.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/cuda_timeline.h"
#include "kernels/ops.h"

namespace ferry::cuda {

// Passed events that nobody uses, for reuse: making one costs a microsecond. Thread-safe.
class EventPool {
 public:
  absl::StatusOr<StreamEvent> Take();
  void Give(StreamEvent event);

 private:
  std::mutex mutex_;
  std::vector<StreamEvent> free_;  // guarded by mutex_
};

// Event of ops.h on a CUDA stream.
class CudaEvent final : public EventState {
 public:
  // An event that passes when all work queued on `stream` so far is done.
  static absl::StatusOr<Event> Record(std::shared_ptr<EventPool> pool, cudaStream_t stream);
  // `event` as a CudaEvent; null when it is null or another backend's.
  static const CudaEvent* Of(const Event& event) { return dynamic_cast<const CudaEvent*>(event.get()); }

  CudaEvent(std::shared_ptr<EventPool> pool, StreamEvent event) : pool_(std::move(pool)), event_(std::move(event)) {}
  ~CudaEvent() override { pool_->Give(std::move(event_)); }
  cudaEvent_t get() const { return event_.get(); }

 private:
  std::shared_ptr<EventPool> pool_;
  StreamEvent event_;
};

// Polls `query` until it returns cudaSuccess: in a tight loop at first, later with sleeps in between. True: success. False:
// `deadline` came first. Returns an error other than cudaErrorNotReady as a Status.
absl::StatusOr<bool> PollUntil(Deadline deadline, std::string_view what, const std::function<cudaError_t()>& query);

// One thread.
class CopyEngine {
 public:
  // `timeline` gets a span for every copy; it must outlive this.
  static absl::StatusOr<std::unique_ptr<CopyEngine>> Create(int device, std::shared_ptr<EventPool> events,
                                                            CudaTimeline* timeline);
  ~CopyEngine();  // unpins all regions

  // Page-locks `region` for every device of the process. read_only: its mapping may not be writable (a sealed arena).
  // InvalidArgument: empty, or overlaps a pinned region. FailedPrecondition: the system refuses; ResourceExhausted: the
  // limit of locked memory.
  absl::Status Pin(std::span<const std::byte> region, bool read_only);
  // Waits for copies in flight first.
  void Unpin(std::span<const std::byte> region);

  // Whether all of `bytes` lies in one pinned region. InvalidArgument: it crosses the end of one.
  absl::StatusOr<bool> InPinned(std::string_view name, std::span<const std::byte> bytes) const;
  // Device memory that several processes share (kernels/peer_memory.h), from its making to its end.
  void AddShared(std::span<const std::byte> region) { shared_[reinterpret_cast<uintptr_t>(region.data())] = region; }
  void RemoveShared(std::span<const std::byte> region) { shared_.erase(reinterpret_cast<uintptr_t>(region.data())); }
  // Whether all of `bytes` lies in one such region.
  bool InShared(std::span<const std::byte> bytes) const;
  // Whether kernels reach pinned memory by the host's own addresses.
  bool kernels_reach_pinned() const { return kernels_reach_pinned_; }
  // Whether the device's memory is the host's, as in an integrated GPU.
  bool shares_host_memory() const { return shares_host_memory_; }
  // The address at which kernels read `host`. FailedPrecondition: it is not pinned, and kernels do not reach the host's other
  // memory.
  absl::StatusOr<const std::byte*> AddressOf(std::span<const std::byte> host) const;

  // Queues a copy after `after`, all of them CudaEvents or null. InvalidArgument: host_src crosses the end of a pinned
  // region. Memory outside all regions is copied as well, slower, and the call may wait for the queue.
  absl::StatusOr<Event> Copy(void* dst, std::span<const std::byte> host_src, std::span<const Event> after);

  cudaStream_t stream() const { return stream_.get(); }

 private:
  explicit CopyEngine(CudaTimeline* timeline) : timeline_(*timeline) {}
  CudaTimeline& timeline_;
  int device_ = 0;
  bool kernels_reach_pinned_ = false;
  bool kernels_reach_pageable_ = false;
  bool shares_host_memory_ = false;
  Stream stream_;
  std::shared_ptr<EventPool> events_;
  std::map<uintptr_t, std::span<const std::byte>> pinned_;  // by address
  std::map<uintptr_t, std::span<const std::byte>> shared_;  // likewise
};

}  // namespace ferry::cuda
