#include "common/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

namespace ferry {
namespace {

absl::Status ErrnoStatus(int error, const std::string& path, const char* what) {
  return Annotate(absl::ErrnoToStatus(error, what), path);
}

// The pages that touch `part` (outward), or those wholly inside it (inward).
std::span<std::byte> Pages(std::span<const std::byte> part, bool outward) {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(part.data());
  uintptr_t end = begin + part.size();
  if (outward) {
    begin -= begin % page;
  } else {
    begin += (page - begin % page) % page;
    end -= end % page;
  }
  if (begin >= end) return {};
  return {reinterpret_cast<std::byte*>(begin), end - begin};
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a fifo does not block the open
  if (descriptor < 0) return ErrnoStatus(errno, path, "cannot be opened");
  struct stat about;
  if (::fstat(descriptor, &about) != 0) {
    const int error = errno;
    ::close(descriptor);
    return ErrnoStatus(error, path, "cannot be examined");
  }
  if (!S_ISREG(about.st_mode)) {
    ::close(descriptor);
    return InvalidArgument("%s: not a regular file", path);
  }
  if (about.st_size == 0) {
    ::close(descriptor);
    return InvalidArgument("%s: the file is empty", path);
  }
  const size_t size = static_cast<size_t>(about.st_size);
  void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (memory == MAP_FAILED) return ErrnoStatus(error, path, "cannot be mapped");
  return MappedFile(path, {static_cast<const std::byte*>(memory), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    Unmap();
    path_ = std::move(other.path_);
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

MappedFile::~MappedFile() { Unmap(); }

void MappedFile::Unmap() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

bool MappedFile::Contains(std::span<const std::byte> part) const {
  return part.data() >= bytes_.data() && part.data() + part.size() <= bytes_.data() + bytes_.size();
}

void MappedFile::Prefetch(std::span<const std::byte> part) const {
  const std::span<std::byte> pages = Pages(part, /*outward=*/true);
  if (!pages.empty()) ::madvise(pages.data(), pages.size(), MADV_WILLNEED);
}

void MappedFile::Release(std::span<const std::byte> part) const {
  const std::span<std::byte> pages = Pages(part, /*outward=*/false);
  if (!pages.empty()) ::madvise(pages.data(), pages.size(), MADV_DONTNEED);
}

}  // namespace ferry
