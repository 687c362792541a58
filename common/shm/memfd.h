#pragma once

// Anonymous shared memory by descriptor: what ShmArena and ExpertMailbox are made of.

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

struct Memfd {
  UniqueFd fd;
  int64_t bytes = 0;  // its size: what was asked for, rounded up to its pages
  bool huge_pages = false;
};

// A memfd of at least `bytes` zeros that can be sealed. Huge pages are used when the machine has enough of them reserved and
// `try_huge_pages` is set. ResourceExhausted names the bytes that are needed and those that are available.
absl::StatusOr<Memfd> CreateMemfd(const std::string& name, int64_t bytes, bool try_huge_pages);

// A peer's descriptor, taken. InvalidArgument: no memfd, smaller than `bytes` or larger than its pages need, or not sealed
// against shrinking, which would let the peer take pages away under a reader.
absl::StatusOr<Memfd> AdoptMemfd(int fd, int64_t bytes);

// Maps all of it, shared, on 2 MiB where it is that large, so that huge pages fit. With `at`, over what is mapped there.
absl::StatusOr<std::byte*> MapMemfd(const Memfd& memfd, bool writable, std::byte* at = nullptr);

// Adds F_SEAL_... flags.
absl::Status AddSeals(const Memfd& memfd, int seals);

}  // namespace ferry
