#pragma once

// Shared memory by descriptor: a memfd that has no name, so nothing is left behind whoever dies, and the Unix-socket channel
// that hands descriptors to processes of the same user on the same host.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/memfd.h"
#include "common/status.h"

namespace ferry {

// A mapping of a memfd. Move-only; unmaps and closes on destruction.
class ShmArena {
 public:
  static constexpr int64_t kHugePage = 2 << 20;  // bytes

  // A writable region of `bytes`, in huge pages where the machine has them reserved (MFD_HUGETLB), else ordinary pages with
  // MADV_HUGEPAGE advised. ResourceExhausted: not that much memory, with needed and available bytes named.
  static absl::StatusOr<ShmArena> Create(const std::string& name, int64_t bytes);
  // Maps a descriptor read-only; takes it. InvalidArgument: it holds fewer than `bytes`, or is not sealed against
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
  bool huge_pages() const { return memfd_.huge_pages; }  // reserved ones
  std::span<std::byte> writable() { return {data_, sealed_ ? 0 : static_cast<size_t>(bytes_)}; }  // empty once sealed
  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(bytes_)}; }

 private:
  Memfd memfd_;
  std::byte* data_ = nullptr;  // memfd_.bytes are mapped
  int64_t bytes_ = 0;          // asked for
  bool sealed_ = false;
};

// The coordinator's end: an abstract Unix socket. Peers of another user are turned away (SO_PEERCRED).
class DescriptorServer {
 public:
  // `path`: an abstract name without the leading zero byte.
  static absl::StatusOr<std::unique_ptr<DescriptorServer>> Listen(const std::string& name);
  virtual ~DescriptorServer() = default;
  virtual const std::string& name() const = 0;
  // Hands `fds` to the next caller that presents `key`; each offer serves one caller, a second offer under a key replaces the
  // first. Keys are 1 to 64 bytes and hard to guess; at most 16 descriptors. The server duplicates them: the caller's own
  // may be closed at once. False: the key or the number is out of range, or the process has no descriptors left.
  virtual bool Offer(const std::string& key, const std::vector<int>& fds) = 0;
  virtual void Withdraw(const std::string& key) = 0;
};
// 64 characters that nobody guesses, to Offer under.
std::string RandomDescriptorKey();
// The worker's end: fetches what was offered under `key`; the descriptors are the caller's to close. NotFound: nothing is;
// Unavailable: nobody listens, or it hung up; PermissionDenied: who listens is another user; DeadlineExceeded.
absl::StatusOr<std::vector<int>> FetchDescriptors(const std::string& name, const std::string& key, absl::Time deadline);

}  // namespace ferry
