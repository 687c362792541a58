#include "kernels/cuda/copy_engine.h"

#include <algorithm>
#include <thread>

#include "common/deadline.h"
#include "common/log.h"

namespace ferry::cuda {
namespace {

uintptr_t Begin(std::span<const std::byte> bytes) { return reinterpret_cast<uintptr_t>(bytes.data()); }
uintptr_t End(std::span<const std::byte> bytes) { return Begin(bytes) + bytes.size(); }
bool Overlap(std::span<const std::byte> a, std::span<const std::byte> b) { return Begin(a) < End(b) && Begin(b) < End(a); }

}  // namespace

absl::StatusOr<StreamEvent> EventPool::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      StreamEvent event = std::move(free_.back());
      free_.pop_back();
      return event;
    }
  }
  return StreamEvent::Create();
}

void EventPool::Give(StreamEvent event) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(event));
}

absl::StatusOr<Event> CudaEvent::Record(std::shared_ptr<EventPool> pool, cudaStream_t stream) {
  ASSIGN_OR_RETURN(StreamEvent event, pool->Take());
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(event.get(), stream), "recording an event"));
  return Event(std::make_shared<CudaEvent>(std::move(pool), std::move(event)));
}

absl::StatusOr<bool> PollUntil(Deadline deadline, std::string_view what, const std::function<cudaError_t()>& query) {
  constexpr absl::Duration kTight = absl::Microseconds(200);  // most waits of a step end within it
  constexpr auto kSleep = std::chrono::microseconds(50);
  const Stopwatch waiting;
  while (true) {
    const cudaError_t error = query();
    if (error == cudaSuccess) return true;
    if (error != cudaErrorNotReady) return CudaStatus(error, what);
    if (deadline.Passed()) return false;
    if (waiting.Elapsed() > kTight) std::this_thread::sleep_for(kSleep);
  }
}

absl::StatusOr<std::unique_ptr<CopyEngine>> CopyEngine::Create(int device, std::shared_ptr<EventPool> events,
                                                               CudaTimeline* timeline) {
  std::unique_ptr<CopyEngine> out(new CopyEngine(timeline));
  out->device_ = device;
  for (const auto& [attribute, value] : {std::pair(cudaDevAttrCanUseHostPointerForRegisteredMem, &out->kernels_reach_pinned_),
                                         std::pair(cudaDevAttrPageableMemoryAccess, &out->kernels_reach_pageable_),
                                         std::pair(cudaDevAttrIntegrated, &out->shares_host_memory_)}) {
    int answer = 0;
    RETURN_IF_ERROR(CudaStatus(cudaDeviceGetAttribute(&answer, attribute, device), "asking how kernels reach the host's memory"));
    *value = answer != 0;
  }
  ASSIGN_OR_RETURN(out->stream_, Stream::Create());
  out->events_ = std::move(events);
  return out;
}

CopyEngine::~CopyEngine() {
  while (!pinned_.empty()) Unpin(pinned_.begin()->second);
}

absl::Status CopyEngine::Pin(std::span<const std::byte> region, bool read_only) {
  if (region.empty()) return InvalidArgument("region is empty");
  for (const auto& [address, other] : pinned_) {
    if (Overlap(region, other)) {
      return InvalidArgument("region of %d bytes overlaps one of %d bytes that is pinned already", region.size(), other.size());
    }
  }
  unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped;
  if (read_only) {
    int supported = 0;
    RETURN_IF_ERROR(CudaStatus(cudaDeviceGetAttribute(&supported, cudaDevAttrHostRegisterReadOnlySupported, device_),
                               "asking whether read-only memory can be pinned"));
    if (supported == 0) return FailedPrecondition("this system cannot pin memory that is mapped read-only");
    flags |= cudaHostRegisterReadOnly;
  }
  RETURN_IF_ERROR(CudaStatus(cudaHostRegister(const_cast<std::byte*>(region.data()), region.size(), flags),
                             absl::StrFormat("pinning %d bytes of host memory%s", region.size(), read_only ? " read-only" : "")));
  pinned_[Begin(region)] = region;
  return absl::OkStatus();
}

void CopyEngine::Unpin(std::span<const std::byte> region) {
  const auto found = pinned_.find(Begin(region));
  if (found == pinned_.end() || found->second.size() != region.size()) return;
  absl::Status status = CudaStatus(cudaStreamSynchronize(stream_.get()), "waiting for copies");
  status.Update(CudaStatus(cudaHostUnregister(const_cast<std::byte*>(region.data())), "unpinning host memory"));
  if (!status.ok()) spdlog::error("{}", std::string(status.message()));
  pinned_.erase(found);
}

absl::StatusOr<bool> CopyEngine::InPinned(std::string_view name, std::span<const std::byte> bytes) const {
  // The first region that ends after the bytes begin is the only one they may touch.
  auto region = pinned_.upper_bound(Begin(bytes));
  if (region != pinned_.begin() && End(std::prev(region)->second) > Begin(bytes)) --region;
  if (region == pinned_.end() || !Overlap(region->second, bytes)) return false;
  if (Begin(bytes) >= Begin(region->second) && End(bytes) <= End(region->second)) return true;
  return InvalidArgument("%s of %d bytes crosses the end of a pinned region of %d bytes", name, bytes.size(),
                         region->second.size());
}

bool CopyEngine::InShared(std::span<const std::byte> bytes) const {
  const auto after = shared_.upper_bound(Begin(bytes));
  return after != shared_.begin() && End(bytes) <= End(std::prev(after)->second);
}

absl::StatusOr<const std::byte*> CopyEngine::AddressOf(std::span<const std::byte> host) const {
  ASSIGN_OR_RETURN(const bool pinned, InPinned("host", host));
  if (pinned ? kernels_reach_pinned_ : kernels_reach_pageable_) return host.data();
  return FailedPrecondition("this GPU's kernels cannot read the host's memory where it lies%s",
                            pinned ? "" : ", which is not pinned");
}

absl::StatusOr<Event> CopyEngine::Copy(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) {
  if (!host_src.empty()) {
    if (dst == nullptr) return InvalidArgument("dst is null");
    RETURN_IF_ERROR(InPinned("host_src", host_src).status());
  }
  for (const Event& event : after) {
    if (event != nullptr && CudaEvent::Of(event) == nullptr) return InvalidArgument("after is an event of another backend");
  }
  for (const Event& event : after) {
    if (event == nullptr) continue;
    RETURN_IF_ERROR(CudaStatus(cudaStreamWaitEvent(stream_.get(), CudaEvent::Of(event)->get(), 0), "CopyAsync after an event"));
  }
  if (!host_src.empty()) {
    const CudaTimeline::Scope span(timeline_, "CopyAsync", TimelineSpan::Queue::kCopy, stream_.get());
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(dst, host_src.data(), host_src.size(), cudaMemcpyHostToDevice, stream_.get()), "CopyAsync"));
  }
  return CudaEvent::Record(events_, stream_.get());
}

}  // namespace ferry::cuda
