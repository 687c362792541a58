#include "common/library_threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "common/exit_codes.h"
#include "common/signal_cleanup.h"
#include "common/thread_limit.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FERRY_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FERRY_SANITIZED
#endif
#endif

namespace ferry {
namespace {

constexpr int kTries = 60;
constexpr timespec kPause = {.tv_sec = 0, .tv_nsec = 50'000'000};

std::atomic<bool> ends_process{false};
thread_local int handlers = 0;  // HandlesMissingThreads of this thread

[[maybe_unused]] bool MayFail() { return !ends_process || handlers > 0; }

[[maybe_unused]] [[noreturn]] void End() {
  std::fprintf(stderr, "error: a library needs another thread, and none can be started: %s\n", ThreadLimitInWords(1).c_str());
  RemoveRegisteredPaths();
  std::_Exit(kExitLacksRoom);
}

}  // namespace

void EndWhereALibraryLacksAThread() { ends_process = true; }

HandlesMissingThreads::HandlesMissingThreads() { ++handlers; }
HandlesMissingThreads::~HandlesMissingThreads() { --handlers; }

}  // namespace ferry

#ifndef FERRY_SANITIZED
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                                                                     void* (*body)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  for (int tried = 1;; ++tried) {
    const int error = create(thread, attributes, body, argument);
    if (error != EAGAIN || ferry::MayFail()) return error;
    if (tried == ferry::kTries) ferry::End();
    nanosleep(&ferry::kPause, nullptr);
  }
}
#endif
