#pragma once

// A regular file mapped read-only into memory.
//
// The mapping is live: a writer to the file changes the bytes read here, and a truncation takes pages away. So a reader calls
// CheckUnchanged before it uses the bytes it has read. A page that the file no longer has reads as zeros from then on, instead
// of ending the process with SIGBUS, and CheckUnchanged says so.

#include <cstddef>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

// Owns the mapping and the open file; move-only. The bytes stay where they are when the owner moves.
class MappedFile {
 public:
  // InvalidArgument: not a regular file, or empty. NotFound, PermissionDenied, ...: what the system said. ResourceExhausted: too
  // many open files.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

  // OK: the file is what it was when it was opened: of the same size, not written since, and no page was missing. It may have
  // been renamed or deleted, which takes nothing away. FailedPrecondition says what happened. Thread-safe.
  absl::Status CheckUnchanged() const;

  // Whether `part` lies in this mapping.
  bool Contains(std::span<const std::byte> part) const;
  // Asks the kernel to read `part` ahead. `part` lies in this mapping.
  void Prefetch(std::span<const std::byte> part) const;
  // Drops the pages that lie wholly inside `part`; a later read fetches them from the file again.
  void Release(std::span<const std::byte> part) const;

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes, UniqueFd descriptor, absl::Time written, int guard)
      : path_(std::move(path)), bytes_(bytes), descriptor_(std::move(descriptor)), written_(written), guard_(guard) {}
  void Unmap();

  std::string path_;
  std::span<const std::byte> bytes_;
  UniqueFd descriptor_;
  absl::Time written_;  // last, when it was opened
  int guard_ = -1;      // its place among the mappings whose missing pages are replaced; -1: none was free
};

}  // namespace ferry
