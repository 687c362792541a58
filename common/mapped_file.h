#pragma once

// A regular file mapped read-only into memory.

#include <cstddef>
#include <span>
#include <string>

#include "common/status.h"

namespace ferry {

// Owns the mapping; move-only. Moving the owner does not move the bytes. The file must not shrink while it is
// mapped: the kernel answers a read past the new end with SIGBUS.
class MappedFile {
 public:
  // InvalidArgument: not a regular file, or empty. NotFound, PermissionDenied, ...: the system's error.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

  // Whether `part` lies in this mapping.
  bool Contains(std::span<const std::byte> part) const;
  // Asks the kernel to read `part` ahead. `part` lies in this mapping.
  void Prefetch(std::span<const std::byte> part) const;
  // Drops the pages that lie wholly inside `part`; a later read fetches them from the file again.
  void Release(std::span<const std::byte> part) const;

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}
  void Unmap();

  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace ferry
