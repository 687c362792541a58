#include "common/shm/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <utility>

namespace ferry {

absl::StatusOr<SharedRegion> SharedRegion::Create(const std::string& name, int64_t bytes) {
  ASSIGN_OR_RETURN(Memfd memfd, CreateMemfd(name, bytes, /*try_huge_pages=*/false));
  RETURN_IF_ERROR(AddSeals(memfd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
  ASSIGN_OR_RETURN(std::byte* const data, MapMemfd(memfd, /*writable=*/true));
  return SharedRegion(std::move(memfd), data);
}

absl::StatusOr<SharedRegion> SharedRegion::Map(int fd, int64_t bytes) {
  ASSIGN_OR_RETURN(Memfd memfd, AdoptMemfd(fd, bytes));
  ASSIGN_OR_RETURN(std::byte* const data, MapMemfd(memfd, /*writable=*/true));
  return SharedRegion(std::move(memfd), data);
}

SharedRegion::SharedRegion(SharedRegion&& other) noexcept
    : memfd_(std::move(other.memfd_)), data_(std::exchange(other.data_, nullptr)) {}

SharedRegion::~SharedRegion() {
  if (data_ != nullptr) ::munmap(data_, memfd_.bytes);
}

}  // namespace ferry
