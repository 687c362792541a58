#pragma once

// Memory of one device that devices of other processes of the host read and write: what they copy crosses no host memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// Destroyed before the Ops that made it; waits for the compute that uses it.
class PeerMemory {
 public:
  static constexpr size_t kKeyBytes = 64;

  virtual ~PeerMemory() = default;
  // Device addresses. Ops::UploadAsync, DownloadAsync and ScatterComputedAsync take parts of it as they take pinned host memory.
  virtual std::span<std::byte> bytes() const = 0;
  // By which other processes map it; kKeyBytes, or empty where this process has mapped it itself. Who knows the key can read and
  // write the memory.
  virtual const std::string& key() const = 0;
};

// A backend whose devices can do so is an Ops and one of these. One thread at a time, as of Ops.
class PeerMemories {
 public:
  virtual ~PeerMemories() = default;
  // Allocates `bytes` of this device's memory that other processes may map. FailedPrecondition: the system does not allow it.
  // ResourceExhausted: the device is full.
  virtual absl::StatusOr<std::unique_ptr<PeerMemory>> Share(int64_t bytes) = 0;
  // Maps memory that another process of this host shares. FailedPrecondition: this device does not reach it. InvalidArgument: the
  // key is none, or the memory has fewer than `bytes`.
  virtual absl::StatusOr<std::unique_ptr<PeerMemory>> Map(const std::string& key, int64_t bytes) = 0;
};

// `ops` as one of these; null: its devices share no memory.
inline PeerMemories* PeerMemoriesOf(Ops& ops) { return dynamic_cast<PeerMemories*>(&ops); }

}  // namespace ferry
