#include "common/signal_cleanup.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace ferry {
namespace {

constexpr int kSlots = 32;
constexpr size_t kPathBytes = 4096;

// A handler can run at any moment, so a path is copied into memory that is never freed before its slot says that it is there.
struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<bool> ready{false};
  char path[kPathBytes];
};
std::array<Slot, kSlots> slots;

// As the kernel's getdents64 writes it; readdir may not be called by a signal handler.
struct DirectoryEntry {
  uint64_t inode;
  int64_t next;
  uint16_t bytes;
  uint8_t type;
  char name[];
};

void RemoveFlatFolder(const char* path) {
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0) return;
  alignas(DirectoryEntry) char buffer[4096];
  for (long bytes; (bytes = syscall(SYS_getdents64, folder, buffer, sizeof(buffer))) > 0;) {
    for (long at = 0; at < bytes;) {
      const DirectoryEntry* const entry = reinterpret_cast<const DirectoryEntry*>(buffer + at);
      unlinkat(folder, entry->name, 0);  // fails for "." and ".."
      at += entry->bytes;
    }
  }
  close(folder);
  rmdir(path);
}

void CleanUpAndEnd(int signal) {
  RemoveRegisteredPaths();
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  raise(signal);  // delivered as soon as this handler has returned
}

}  // namespace

RemovedOnSignal::RemovedOnSignal(const std::string& path) {
  if (path.size() >= kPathBytes) return;
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i].taken.exchange(true)) continue;
    std::memcpy(slots[i].path, path.c_str(), path.size() + 1);
    slots[i].ready = true;
    slot_ = i;
    return;
  }
}

RemovedOnSignal::~RemovedOnSignal() {
  if (slot_ < 0) return;
  slots[slot_].ready = false;
  slots[slot_].taken = false;
}

void RemoveRegisteredPaths() {
  for (int i = kSlots - 1; i >= 0; --i) {
    if (!slots[i].ready) continue;
    if (unlink(slots[i].path) != 0) RemoveFlatFolder(slots[i].path);
  }
}

void InstallSignalCleanup() {
  const auto handle = [](int signal) {
    struct sigaction before = {};
    if (sigaction(signal, nullptr, &before) != 0 || before.sa_handler != SIG_DFL) return;
    struct sigaction action = {};
    action.sa_handler = CleanUpAndEnd;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  };
  for (const int signal : {SIGHUP,  SIGINT,  SIGQUIT, SIGILL,    SIGTRAP, SIGABRT,   SIGBUS,  SIGFPE, SIGUSR1, SIGSEGV,
                           SIGUSR2, SIGALRM, SIGTERM, SIGSTKFLT, SIGXCPU, SIGVTALRM, SIGPROF, SIGIO,  SIGPWR,  SIGSYS}) {
    handle(signal);
  }
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) handle(signal);
}

}  // namespace ferry
