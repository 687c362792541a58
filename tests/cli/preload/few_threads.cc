// LD_PRELOAD: a process of the program FERRY_TEST_PROGRAM may have FERRY_TEST_THREADS threads at a time, beside its first. It
// cannot start more, as where `ulimit -u` or a cgroup's pids.max says so. Those need a user or root of their own, and this does
// not.

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace {

std::atomic<int> running{0};

struct Start {
  void* (*body)(void*);
  void* argument;
};

void* Run(void* argument) {
  const Start start = *static_cast<Start*>(argument);
  delete static_cast<Start*>(argument);
  thread_local const struct Counted {
    ~Counted() { --running; }
  } counted;
  (void)&counted;  // a thread's object is made where it is first used
  return start.body(start.argument);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                                                                     void* (*body)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  static const int limit = std::strcmp(std::getenv("FERRY_TEST_PROGRAM"), program_invocation_short_name) == 0
                               ? std::atoi(std::getenv("FERRY_TEST_THREADS"))
                               : std::numeric_limits<int>::max();
  if (++running > limit) {
    --running;
    return EAGAIN;
  }
  auto* const start = new Start{body, argument};
  const int result = create(thread, attributes, Run, start);
  if (result != 0) {
    delete start;
    --running;
  }
  return result;
}
