#pragma once

// Anonymous shared memory by descriptor, which ShmArena, ExpertMailbox and the rings use.

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

struct Memfd {
  UniqueFd fd;
  int64_t bytes = 0;  // its size: the bytes asked for, rounded up to its pages
  bool huge_pages = false;
};

// A memfd of at least `bytes` zeros that can be sealed. Huge pages are used when the machine has enough of them reserved and
// `try_huge_pages` is set. ResourceExhausted names the bytes needed and the bytes available.
absl::StatusOr<Memfd> CreateMemfd(const std::string& name, int64_t bytes, bool try_huge_pages);

// The same, but the caller touches at most `used` bytes, and only those have to be available. Without huge pages.
absl::StatusOr<Memfd> CreateSparseMemfd(const std::string& name, int64_t bytes, int64_t used);

// Takes a peer's descriptor. InvalidArgument: it is no memfd, is smaller than `bytes` or larger than whole pages need, or is not
// sealed against shrinking, by which the peer could take pages away under a reader.
absl::StatusOr<Memfd> AdoptMemfd(int fd, int64_t bytes);

// Maps all of it, shared, aligned to 2 MiB if it is that large, so that huge pages fit. With `at`, replaces the mapping there.
absl::StatusOr<std::byte*> MapMemfd(const Memfd& memfd, bool writable, std::byte* at = nullptr);

// Adds F_SEAL_... flags.
absl::Status AddSeals(const Memfd& memfd, int seals);

}  // namespace ferry
