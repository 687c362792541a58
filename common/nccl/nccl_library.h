#pragma once

// NVIDIA's NCCL, loaded at run time, so that one build runs on machines with and without it. Declares the part of its C interface
// that Ferry uses; NCCL keeps that interface compatible within version 2.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"

struct ncclComm;  // NCCL's own

namespace ferry {

// Made by one process of a communicator, for the others. Who knows it can join.
struct NcclUniqueId {
  static constexpr size_t kBytes = 128;
  char bytes[kBytes] = {};
};

// Of version 2.18, the oldest that is taken. A later library reads no more than the size that is given.
struct NcclConfig {
  static constexpr int kUndefined = INT32_MIN;
  size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21800;
  int blocking = kUndefined;
  int cga_cluster_size = kUndefined;
  int min_ctas = kUndefined;
  int max_ctas = kUndefined;
  const char* net_name = nullptr;
  int split_share = kUndefined;
  int padding = kUndefined;  // a field of later versions lies here
};

class NcclLibrary {
 public:
  static constexpr int kOldest = 21800;  // communicators that do not block, and their configuration
  static constexpr int kSuccess = 0, kInProgress = 7;
  static constexpr int kBytesType = 1;  // ncclUint8

  // Loads `path`, or libnccl.so.2 from where the system looks for libraries if that is empty. The library stays loaded until the
  // process ends. FailedPrecondition: it cannot be loaded, is older than kOldest or not of version 2, or lacks a function; the
  // message names the file.
  static absl::StatusOr<std::shared_ptr<const NcclLibrary>> Load(const std::string& path);

  const std::string& version() const { return version_; }  // "2.28.9"

  // The result of the call `what` as a Status; OK for kSuccess and kInProgress. Unavailable: a peer or the network is lost;
  // Internal: anything else. `comm` may be null.
  absl::Status StatusOf(int result, const char* what, ncclComm* comm) const;

  // The functions, as NCCL describes them. Streams are CUDA streams.
  int (*GetVersion)(int* version) = nullptr;
  int (*GetUniqueId)(NcclUniqueId* id) = nullptr;
  int (*CommInitRankConfig)(ncclComm** comm, int num_ranks, NcclUniqueId id, int rank, NcclConfig* config) = nullptr;
  int (*CommGetAsyncError)(ncclComm* comm, int* error) = nullptr;
  int (*CommAbort)(ncclComm* comm) = nullptr;
  int (*Send)(const void* data, size_t count, int type, int peer, ncclComm* comm, void* stream) = nullptr;
  int (*Recv)(void* data, size_t count, int type, int peer, ncclComm* comm, void* stream) = nullptr;
  const char* (*GetErrorString)(int result) = nullptr;
  const char* (*GetLastError)(ncclComm* comm) = nullptr;

 private:
  NcclLibrary() = default;
  absl::Status Resolve(void* handle, const std::string& file);
  absl::Status CheckVersion(const std::string& file);

  std::string version_;
};

// What NCCL reads from this process's environment: call it before any thread starts and before Load. Network traffic is bound to
// `interface`, or to loopback if that is empty, and NVLink multicast is off. FailedPrecondition: this host has no such interface.
absl::Status PrepareNcclEnvironment(const std::string& interface);

}  // namespace ferry
