#include "common/shm/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/checked_size.h"
#include "common/host_memory.h"

namespace ferry {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// A memfd whose pages are of `page` bytes, with a first mapping tried, since that is where huge pages are reserved.
absl::StatusOr<Memfd> Create(const std::string& name, int64_t bytes, int64_t page, unsigned flags) {
  const CheckedSize rounded = CheckedSize(bytes).AlignedUp(page);
  if (!rounded.valid()) return ResourceExhausted("%s: %d bytes are too many", name, bytes);
  Memfd memfd;
  memfd.bytes = static_cast<int64_t>(rounded.value());
  memfd.huge_pages = (flags & MFD_HUGETLB) != 0;
  memfd.fd = UniqueFd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  if (!memfd.fd.valid()) return Annotate(absl::ErrnoToStatus(errno, "memfd_create"), name);
  if (::ftruncate(memfd.fd.get(), memfd.bytes) != 0) {
    return Annotate(absl::ErrnoToStatus(errno, "a memfd cannot be given its size"), name);
  }
  if (memfd.huge_pages) {
    void* const memory = ::mmap(nullptr, memfd.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.fd.get(), 0);
    if (memory == MAP_FAILED) return Annotate(absl::ErrnoToStatus(errno, "no huge pages"), name);
    ::munmap(memory, memfd.bytes);
  }
  return memfd;
}

}  // namespace

absl::StatusOr<Memfd> CreateMemfd(const std::string& name, int64_t bytes, bool try_huge_pages) {
  if (bytes < 1) return InvalidArgument("%s: bytes is %d, want at least 1", name, bytes);
  if (try_huge_pages && bytes >= kHugePage) {
    // They are reserved apart from other memory: having them is all that is asked.
    absl::StatusOr<Memfd> memfd = Create(name, bytes, kHugePage, MFD_HUGETLB | MFD_HUGE_2MB);
    if (memfd.ok()) return memfd;
  }
  return CreateSparseMemfd(name, bytes, bytes);
}

absl::StatusOr<Memfd> CreateSparseMemfd(const std::string& name, int64_t bytes, int64_t used) {
  if (bytes < 1) return InvalidArgument("%s: bytes is %d, want at least 1", name, bytes);
  // The kernel promises pages that it does not have and kills the process that touches them, so ask first.
  const HostMemory memory = ReadHostMemory();
  if (used > memory.available_bytes) {
    return ResourceExhausted("%s needs %d bytes of memory, %d are available (%s)", name, used, memory.available_bytes,
                             memory.limited_by);
  }
  return Create(name, bytes, ::sysconf(_SC_PAGESIZE), 0);
}

absl::StatusOr<Memfd> AdoptMemfd(int fd, int64_t bytes) {
  Memfd memfd;
  memfd.fd = UniqueFd(fd);
  struct stat about;
  struct statfs system;
  if (::fstat(fd, &about) != 0 || ::fstatfs(fd, &system) != 0) {
    return InvalidArgument("descriptor %d cannot be examined: %s", fd, absl::ErrnoToStatus(errno, "").ToString());
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return InvalidArgument("descriptor %d is not shared memory that can be sealed", fd);
  if ((seals & F_SEAL_SHRINK) == 0) return InvalidArgument("descriptor %d is not sealed against shrinking", fd);
  if (about.st_size < bytes) {
    return InvalidArgument("descriptor %d holds %d bytes, want at least %d", fd, about.st_size, bytes);
  }
  if (about.st_size - bytes >= kHugePage) {
    return InvalidArgument("descriptor %d holds %d bytes, want %d and less than a page beyond them", fd, about.st_size, bytes);
  }
  memfd.bytes = about.st_size;
  memfd.huge_pages = system.f_type == HUGETLBFS_MAGIC;
  return memfd;
}

absl::StatusOr<std::byte*> MapMemfd(const Memfd& memfd, bool writable, std::byte* at) {
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  std::byte* reserved = nullptr;
  if (at == nullptr && memfd.bytes >= kHugePage) {
    // Reserves addresses for one huge page more, uses an aligned part and returns the rest.
    const size_t length = static_cast<size_t>(memfd.bytes + kHugePage);
    void* const memory = ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, "no addresses for a mapping");
    reserved = static_cast<std::byte*>(memory);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(reserved) % kHugePage) % kHugePage;
    if (before > 0) ::munmap(reserved, before);
    at = reserved + before;
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    const int64_t used = (memfd.bytes + page - 1) / page * page;
    if (std::byte* const end = reserved + length; at + used < end) ::munmap(at + used, end - (at + used));
  }
  void* const memory = ::mmap(at, memfd.bytes, protection, MAP_SHARED | (at != nullptr ? MAP_FIXED : 0), memfd.fd.get(), 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    if (reserved != nullptr) ::munmap(at, memfd.bytes);
    return absl::ErrnoToStatus(error, "a memfd cannot be mapped");
  }
  if (!memfd.huge_pages) ::madvise(memory, memfd.bytes, MADV_HUGEPAGE);  // advice: taken where shmem_enabled allows
  return static_cast<std::byte*>(memory);
}

absl::Status AddSeals(const Memfd& memfd, int seals) {
  if (::fcntl(memfd.fd.get(), F_ADD_SEALS, seals) == 0) return absl::OkStatus();
  if (errno == EINVAL) return Unimplemented("this kernel does not know a seal of 0x%x; want Linux 5.1", seals);
  return absl::ErrnoToStatus(errno, "a memfd cannot be sealed");
}

}  // namespace ferry
