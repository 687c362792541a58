#include "common/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <utility>

namespace ferry {
namespace {

absl::Status ErrnoStatus(int error, const std::string& path, const char* what) {
  if (error == EMFILE || error == ENFILE) {
    return ResourceExhausted("%s: too many files are open; raise the limit (ulimit -n)", path);
  }
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

absl::Time WrittenAt(const struct stat& about) { return absl::TimeFromTimespec(about.st_mtim); }

// Mappings whose missing pages are replaced. A signal handler reads this, so it is plain memory that is never freed.
struct Guard {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<bool> lost_pages{false};
};
constexpr int kGuards = 1024;  // files of one model, and some
std::array<Guard, kGuards> guards;
struct sigaction before_guards;

// A read of a page that its file no longer has: a page of zeros takes its place, and the read is repeated.
void ReplaceMissingPage(int signal, siginfo_t* info, void* context) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Guard& guard : guards) {
    if (address < guard.begin || address >= guard.end) continue;
    const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    void* const start = reinterpret_cast<void*>(address - address % page);
    if (::mmap(start, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) break;
    guard.lost_pages = true;
    return;
  }
  // Not ours: the handler set before ends the process when the read is repeated.
  ::sigaction(signal, &before_guards, nullptr);
}

// Its place among `guards`; -1: there is none.
int AddGuard(std::span<const std::byte> bytes) {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action = {};
    action.sa_sigaction = ReplaceMissingPage;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &before_guards);
  });
  for (int i = 0; i < kGuards; ++i) {
    if (guards[i].taken.exchange(true)) continue;
    guards[i].lost_pages = false;
    guards[i].begin = reinterpret_cast<uintptr_t>(bytes.data());
    guards[i].end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
    return i;
  }
  return -1;
}

void RemoveGuard(int guard) {
  if (guard < 0) return;
  guards[guard].end = 0;
  guards[guard].begin = 0;
  guards[guard].taken = false;
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  UniqueFd descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a fifo does not block the open
  if (!descriptor.valid()) return ErrnoStatus(errno, path, "cannot be opened");
  struct stat about;
  if (::fstat(descriptor.get(), &about) != 0) return ErrnoStatus(errno, path, "cannot be examined");
  if (!S_ISREG(about.st_mode)) return InvalidArgument("%s: not a regular file", path);
  if (about.st_size == 0) return InvalidArgument("%s: the file is empty", path);
  const size_t size = static_cast<size_t>(about.st_size);
  void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, path, "cannot be mapped");
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(memory), size);
  return MappedFile(path, bytes, std::move(descriptor), WrittenAt(about), AddGuard(bytes));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      bytes_(std::exchange(other.bytes_, {})),
      descriptor_(std::move(other.descriptor_)),
      written_(other.written_),
      guard_(std::exchange(other.guard_, -1)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    Unmap();
    path_ = std::move(other.path_);
    bytes_ = std::exchange(other.bytes_, {});
    descriptor_ = std::move(other.descriptor_);
    written_ = other.written_;
    guard_ = std::exchange(other.guard_, -1);
  }
  return *this;
}

MappedFile::~MappedFile() { Unmap(); }

void MappedFile::Unmap() {
  RemoveGuard(std::exchange(guard_, -1));
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

absl::Status MappedFile::CheckUnchanged() const {
  struct stat now;
  if (::fstat(descriptor_.get(), &now) != 0) return ErrnoStatus(errno, path_, "cannot be examined");
  if (static_cast<size_t>(now.st_size) != bytes_.size()) {
    return FailedPrecondition("%s changed after it was opened: it had %d bytes and has %d; start anew with it", path_,
                              bytes_.size(), now.st_size);
  }
  if (WrittenAt(now) != written_) {
    return FailedPrecondition("%s changed after it was opened: it was written at %s; start anew with it", path_,
                              absl::FormatTime("%Y-%m-%d %H:%M:%S", WrittenAt(now), absl::LocalTimeZone()));
  }
  if (guard_ >= 0 && guards[guard_].lost_pages) {
    return FailedPrecondition("%s changed after it was opened: a part of it was missing for a time; start anew with it", path_);
  }
  return absl::OkStatus();
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
