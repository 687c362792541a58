#pragma once

// Shared memory by descriptor. A memfd has no name, so it vanishes with the last process that maps it. descriptor_socket.h hands
// the descriptor to other processes.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/shm/memfd.h"
#include "common/status.h"

namespace ferry {

// A mapping of a memfd. Move-only; unmaps and closes on destruction.
class ShmArena {
 public:
  static constexpr int64_t kHugePage = 2 << 20;  // bytes

  // A writable region of `bytes`, in huge pages where the machine has them reserved (MFD_HUGETLB), else ordinary pages with
  // MADV_HUGEPAGE advised. ResourceExhausted: not that much memory, with needed and available bytes named.
  static absl::StatusOr<ShmArena> Create(const std::string& name, int64_t bytes);
  // The same, but that at most `used` of the bytes will ever be touched: only those have to be available, and no huge pages that
  // were reserved are taken.
  static absl::StatusOr<ShmArena> CreateSparse(const std::string& name, int64_t bytes, int64_t used);
  // Maps a descriptor read-only; takes it. InvalidArgument: it holds fewer than `bytes` or far more, or is not sealed against
  // shrinking (which would let the peer take pages away under a reader).
  static absl::StatusOr<ShmArena> MapReadOnly(int fd, int64_t bytes);

  ShmArena() = default;
  ShmArena(ShmArena&& other) noexcept;
  ShmArena& operator=(ShmArena&& other) noexcept;
  ~ShmArena();

  // No size change and no new writable mapping from here on, in any process; this mapping becomes read-only where it is, so
  // pointers into bytes() stay good. Unimplemented: the kernel is older than 5.1. FailedPrecondition: it is sealed.
  absl::Status Seal();

  // Makes one huge page of the `number`th kHugePage bytes, touched or not, and keeps their contents. Needs neither reserved pages
  // nor a setting of shmem_enabled (MADV_COLLAPSE, Linux 6.1). Thread-safe. False: the kernel lacks it or is out of huge pages,
  // or fewer bytes than a huge page remain there.
  bool MakeHugePage(int64_t number);
  // Maps the pages of a range into this process at once, if the kernel can. Otherwise the first reader of a sealed arena takes a
  // fault for each page and reads at half the rate. Any thread; a range beyond the end is cut.
  void Touch(int64_t offset, int64_t bytes) const;

  int fd() const { return memfd_.fd.get(); }
  bool huge_pages() const { return memfd_.huge_pages; }                                           // reserved ones
  std::span<std::byte> writable() { return {data_, sealed_ ? 0 : static_cast<size_t>(bytes_)}; }  // empty once sealed
  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(bytes_)}; }

 private:
  Memfd memfd_;
  std::byte* data_ = nullptr;  // memfd_.bytes are mapped
  int64_t bytes_ = 0;          // asked for
  bool sealed_ = false;
};

}  // namespace ferry
