#pragma once

// Shared memory by descriptor: a memfd that has no name, so nothing is left behind whoever dies. descriptor_socket.h hands the
// descriptor to other processes.

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

  // Makes one huge page of the `number`th kHugePage bytes, now, whether or not they have been touched; what they hold stays.
  // Needs neither reserved pages nor a machine whose shmem_enabled gives them (MADV_COLLAPSE, Linux 6.1). Safe on several
  // threads at once. False: the kernel does not do it, has no such page left, or fewer bytes than that remain.
  bool MakeHugePage(int64_t number);
  // Brings the bytes' pages into this process's tables, where the kernel can do that at once: the first reader of a sealed arena
  // pays for each page otherwise, and reads at half its rate. Any thread; ranges beyond the end are cut.
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
