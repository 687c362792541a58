#include "kernels/cuda/host_transfers.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/shm/futex.h"
#include "kernels/checks.h"
#include "kernels/cuda/rows.h"

namespace ferry::cuda {
namespace {

// A kernel's copy to the host begins 6 us earlier than the copy engine's (docs/measurements/decode_gpu.md), which counts until
// the bytes themselves take as long.
constexpr int64_t kMaxKernelDownload = 256 << 10;  // queued
constexpr int64_t kMaxSmallDownload = 16 << 10;    // awaited: one block copies it
constexpr absl::Duration kLookForFaults = absl::Microseconds(100);

}  // namespace

absl::StatusOr<std::unique_ptr<HostTransfers>> HostTransfers::Create(ComputeQueue* queue, const CopyEngine* copies) {
  std::unique_ptr<HostTransfers> transfers(new HostTransfers(queue, copies));
  ASSIGN_OR_RETURN(transfers->staging_, Staging::Create(queue->get()));
  for (PinnedBuffer& half : transfers->downloads_) {
    ASSIGN_OR_RETURN(half, PinnedBuffer::Allocate(Staging::kBufferBytes));
  }
  ASSIGN_OR_RETURN(transfers->signal_, PinnedBuffer::Allocate(sizeof(uint32_t)));
  std::memset(transfers->signal_.data(), 0, sizeof(uint32_t));
  for (StreamEvent& event : transfers->downloaded_) {
    ASSIGN_OR_RETURN(event, StreamEvent::Create());
  }
  return transfers;
}

bool HostTransfers::KernelsReach(std::span<const std::byte> bytes) const {
  return copies_.InShared(bytes) || (copies_.kernels_reach_pinned() && copies_.InPinned("host memory", bytes).value_or(false));
}

absl::Status HostTransfers::Upload(void* dst, std::span<const std::byte> host_src) {
  const CudaTimeline::Scope span = queue_.SpanOf("Upload");
  if (host_src.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("dst", dst));
  for (size_t first = 0; first < host_src.size(); first += Staging::kBufferBytes) {
    const auto part = host_src.subspan(first, std::min<size_t>(Staging::kBufferBytes, host_src.size() - first));
    const auto bytes = static_cast<int64_t>(part.size());
    ASSIGN_OR_RETURN(std::byte * staged, staging_.Reserve(bytes));
    std::memcpy(staged, part.data(), part.size());
    RETURN_IF_ERROR(queue_.Queued("Upload", LaunchCopy(static_cast<std::byte*>(dst) + first, staged, bytes, queue_.get())));
  }
  return absl::OkStatus();
}

absl::Status HostTransfers::Download(std::span<std::byte> host_dst, const void* src) {
  const CudaTimeline::Scope span = queue_.SpanOf("Download");
  if (host_dst.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("src", src));
  const bool small = static_cast<int64_t>(host_dst.size()) <= kMaxSmallDownload;
  return small ? DownloadSmall(host_dst, src) : DownloadInParts(host_dst, src);
}

// Two buffers in turn: the host empties one while the device fills the other.
absl::Status HostTransfers::DownloadInParts(std::span<std::byte> host_dst, const void* src) {
  std::span<std::byte> waiting;
  int turn = 0;
  for (size_t first = 0; first < host_dst.size() || !waiting.empty(); turn ^= 1) {
    std::span<std::byte> part;
    if (first < host_dst.size()) {
      part = host_dst.subspan(first, std::min<size_t>(Staging::kBufferBytes, host_dst.size() - first));
      RETURN_IF_ERROR(
          queue_.Queued("Download", cudaMemcpyAsync(downloads_[turn].data(), static_cast<const std::byte*>(src) + first,
                                                    part.size(), cudaMemcpyDeviceToHost, queue_.get())));
      RETURN_IF_ERROR(queue_.Queued("Download", cudaEventRecord(downloaded_[turn].get(), queue_.get())));
      first += part.size();
    }
    if (!waiting.empty()) {
      RETURN_IF_ERROR(queue_.Seen("Download", cudaEventSynchronize(downloaded_[turn ^ 1].get())));
      std::memcpy(waiting.data(), downloads_[turn ^ 1].data(), waiting.size());
    }
    waiting = part;
  }
  return absl::OkStatus();
}

absl::Status HostTransfers::Receive(std::span<std::byte> host_dst, int64_t part_bytes,
                                    const std::function<absl::Status(int64_t part, std::byte* to)>& queue_part) {
  if (host_dst.empty()) return absl::OkStatus();
  const auto end = static_cast<int64_t>(host_dst.size());
  const int64_t parts = (end + part_bytes - 1) / part_bytes;
  const auto mark = [&](int turn) { return queue_.Queued("Receive", cudaEventRecord(downloaded_[turn].get(), queue_.get())); };
  const auto wait = [&](int turn) { return queue_.Seen("Receive", cudaEventSynchronize(downloaded_[turn].get())); };
  if (KernelsReach(host_dst)) {
    for (int64_t part = 0; part < parts; ++part) RETURN_IF_ERROR(queue_part(part, host_dst.data() + part * part_bytes));
    RETURN_IF_ERROR(mark(0));
    return wait(0);
  }
  // Two buffers in turn, as in DownloadInParts.
  for (int64_t part = 0; part <= parts; ++part) {
    const int turn = static_cast<int>(part % 2);
    if (part < parts) {
      RETURN_IF_ERROR(queue_part(part, downloads_[turn].data()));
      RETURN_IF_ERROR(mark(turn));
    }
    if (part == 0) continue;
    RETURN_IF_ERROR(wait(turn ^ 1));
    const int64_t first = (part - 1) * part_bytes;
    std::memcpy(host_dst.data() + first, downloads_[turn ^ 1].data(), std::min(part_bytes, end - first));
  }
  return absl::OkStatus();
}

// The kernel that copies a few kilobytes also signals their arrival: the host polls a word in its own memory instead of asking
// the driver.
absl::Status HostTransfers::DownloadSmall(std::span<std::byte> host_dst, const void* src) {
  const auto bytes = static_cast<int64_t>(host_dst.size());
  auto* const signal = reinterpret_cast<uint32_t*>(signal_.data());
  const uint32_t number = ++num_small_;
  RETURN_IF_ERROR(queue_.Queued("Download", LaunchCopyAndSignal(downloads_[0].data(), src, bytes, signal, number, queue_.get())));
  const std::atomic_ref<uint32_t> last_arrived(*signal);
  const auto arrived = [&] { return last_arrived.load(std::memory_order_acquire) == number; };
  while (!SpinUntil(kLookForFaults, arrived)) {
    // A fault ends the queue without a signal.
    const cudaError_t error = cudaStreamQuery(queue_.get());
    if (error == cudaErrorNotReady) {
      cudaGetLastError();
      continue;
    }
    RETURN_IF_ERROR(queue_.Seen("Download", error));
    if (!arrived()) return Internal("the queue has passed a Download without its signal");
  }
  std::memcpy(host_dst.data(), downloads_[0].data(), host_dst.size());
  return absl::OkStatus();
}

absl::Status HostTransfers::UploadAsync(void* dst, std::span<const std::byte> host_src) {
  ASSIGN_OR_RETURN(const bool pinned, copies_.InPinned("host_src", host_src));
  if (!copies_.InShared(host_src) && (!pinned || !copies_.kernels_reach_pinned())) return Upload(dst, host_src);
  const CudaTimeline::Scope span = queue_.SpanOf("UploadAsync");
  RETURN_IF_ERROR(CheckNotNull("dst", dst));
  return queue_.Queued("UploadAsync", LaunchCopy(dst, host_src.data(), static_cast<int64_t>(host_src.size()), queue_.get()));
}

absl::Status HostTransfers::DownloadAsync(std::span<std::byte> host_dst, const void* src) {
  ASSIGN_OR_RETURN(const bool pinned, copies_.InPinned("host_dst", host_dst));
  const bool shared = copies_.InShared(host_dst);
  if (!pinned && !shared) return Download(host_dst, src);
  const CudaTimeline::Scope span = queue_.SpanOf("DownloadAsync");
  RETURN_IF_ERROR(CheckNotNull("src", src));
  const auto bytes = static_cast<int64_t>(host_dst.size());
  if (shared || (bytes <= kMaxKernelDownload && copies_.kernels_reach_pinned())) {
    return queue_.Queued("DownloadAsync", LaunchCopy(host_dst.data(), src, bytes, queue_.get()));
  }
  return queue_.Queued("DownloadAsync",
                       cudaMemcpyAsync(host_dst.data(), src, host_dst.size(), cudaMemcpyDeviceToHost, queue_.get()));
}

bool HostTransfers::KernelsCopyTogether(std::span<const HostCopy> copies) const {
  return std::all_of(copies.begin(), copies.end(), [&](const HostCopy& copy) {
    const auto places = reinterpret_cast<uintptr_t>(copy.host.data()) | reinterpret_cast<uintptr_t>(copy.device);
    return (places | copy.host.size()) % kCopyWordBytes == 0 && copy.device != nullptr && KernelsReach(copy.host);
  });
}

// One launch for all of them: a kernel that writes 32 KiB to the host takes 13 us alone, most of it the way there.
absl::Status HostTransfers::CopyTogether(const char* name, std::span<const HostCopy> copies, bool upload) {
  constexpr size_t kMost = Staging::kBufferBytes / sizeof(DeviceCopy) / 4;
  for (size_t first = 0; first < copies.size(); first += kMost) {
    const std::span<const HostCopy> part = copies.subspan(first, std::min(kMost, copies.size() - first));
    ASSIGN_OR_RETURN(std::byte* const staged, staging_.Reserve(static_cast<int64_t>(part.size_bytes())));
    auto* const table = reinterpret_cast<DeviceCopy*>(staged);
    for (size_t i = 0; i < part.size(); ++i) {
      std::byte *const host = part[i].host.data(), *const device = part[i].device;
      table[i] = {upload ? device : host, upload ? host : device, static_cast<int64_t>(part[i].host.size())};
    }
    RETURN_IF_ERROR(queue_.Queued(name, LaunchCopies(table, static_cast<int64_t>(part.size()), queue_.get())));
  }
  return absl::OkStatus();
}

absl::Status HostTransfers::UploadAllAsync(std::span<const HostCopy> copies) {
  const CudaTimeline::Scope span = queue_.SpanOf("UploadAllAsync");
  if (KernelsCopyTogether(copies)) return CopyTogether("UploadAllAsync", copies, /*upload=*/true);
  for (const HostCopy& copy : copies) RETURN_IF_ERROR(UploadAsync(copy.device, copy.host));
  return absl::OkStatus();
}

absl::Status HostTransfers::DownloadAllAsync(std::span<const HostCopy> copies) {
  const CudaTimeline::Scope span = queue_.SpanOf("DownloadAllAsync");
  if (KernelsCopyTogether(copies)) return CopyTogether("DownloadAllAsync", copies, /*upload=*/false);
  for (const HostCopy& copy : copies) RETURN_IF_ERROR(DownloadAsync(copy.host, copy.device));
  return absl::OkStatus();
}

}  // namespace ferry::cuda
