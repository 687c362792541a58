#include "common/shm/shm_arena.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "common/unique_fd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // linux/mman.h from 6.1 on; older kernels refuse it
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // from 5.14 on
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h, which clashes with the C library's
#endif

namespace ferry {

namespace {
constexpr int64_t kSmallestPage = 4096;  // of x86-64 and of most others
}  // namespace

absl::StatusOr<ShmArena> ShmArena::Create(const std::string& name, int64_t bytes) {
  ShmArena arena;
  ASSIGN_OR_RETURN(arena.memfd_, CreateMemfd(name, bytes, /*try_huge_pages=*/true));
  ASSIGN_OR_RETURN(arena.data_, MapMemfd(arena.memfd_, /*writable=*/true));
  arena.bytes_ = bytes;
  return arena;
}

absl::StatusOr<ShmArena> ShmArena::CreateSparse(const std::string& name, int64_t bytes, int64_t used) {
  ShmArena arena;
  ASSIGN_OR_RETURN(arena.memfd_, CreateSparseMemfd(name, bytes, used));
  ASSIGN_OR_RETURN(arena.data_, MapMemfd(arena.memfd_, /*writable=*/true));
  arena.bytes_ = bytes;
  return arena;
}

absl::StatusOr<ShmArena> ShmArena::MapReadOnly(int fd, int64_t bytes) {
  if (bytes < 1) {
    const UniqueFd taken(fd);
    return InvalidArgument("bytes is %d, want at least 1", bytes);
  }
  ShmArena arena;
  ASSIGN_OR_RETURN(arena.memfd_, AdoptMemfd(fd, bytes));
  ASSIGN_OR_RETURN(arena.data_, MapMemfd(arena.memfd_, /*writable=*/false));
  arena.bytes_ = bytes;
  arena.sealed_ = true;
  return arena;
}

ShmArena::ShmArena(ShmArena&& other) noexcept { *this = std::move(other); }

ShmArena& ShmArena::operator=(ShmArena&& other) noexcept {
  std::swap(memfd_, other.memfd_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(sealed_, other.sealed_);
  return *this;
}

ShmArena::~ShmArena() {
  if (data_ != nullptr) ::munmap(data_, memfd_.bytes);
}

bool ShmArena::MakeHugePage(int64_t number) {
  if (memfd_.huge_pages) return true;
  if (number < 0 || number >= memfd_.bytes / kHugePage) return false;
  std::byte* const page = data_ + number * kHugePage;
  // The kernel refuses a range without any page yet.
  const volatile std::byte* const first = page;
  static_cast<void>(*first);
  return ::madvise(page, kHugePage, MADV_COLLAPSE) == 0;
}

void ShmArena::Touch(int64_t offset, int64_t bytes) const {
  if (offset < 0 || bytes <= 0 || offset >= memfd_.bytes) return;
  const int64_t first = offset / kSmallestPage * kSmallestPage;
  ::madvise(data_ + first, std::min(bytes + offset - first, memfd_.bytes - first), MADV_POPULATE_READ);
}

absl::Status ShmArena::Seal() {
  if (data_ == nullptr) return FailedPrecondition("an empty arena cannot be sealed");
  if (sealed_) return FailedPrecondition("the arena is sealed already");
  // FUTURE_WRITE, and not WRITE, because kernels before 6.7 refuse even a read-only shared mapping of a memfd with
  // WRITE.
  RETURN_IF_ERROR(AddSeals(memfd_, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE));
  RETURN_IF_ERROR(AddSeals(memfd_, F_SEAL_SEAL));
  // A new mapping over the old one, which mprotect() cannot make writable again.
  ASSIGN_OR_RETURN(data_, MapMemfd(memfd_, /*writable=*/false, data_));
  sealed_ = true;
  return absl::OkStatus();
}

}  // namespace ferry
