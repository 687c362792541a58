#include "common/library_threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <cerrno>

#include "common/exit_codes.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

// No machine has the memory for the stack of this thread, which is one of the reasons for which none can be started.
int StartAsALibraryDoes() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, size_t{1} << 46);
  pthread_t thread;
  const int error = pthread_create(
      &thread, &attributes, [](void*) -> void* { return nullptr; }, nullptr);
  pthread_attr_destroy(&attributes);
  return error;
}

TEST(LibraryThreadsDeathTest, ALibraryThatLacksAThreadEndsTheProcess) {
  const auto end = [] {
    EndWhereALibraryLacksAThread();
    _exit(StartAsALibraryDoes() == EAGAIN ? 77 : 0);
  };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer is where threads are started";
#endif
  EXPECT_EXIT(end(), ::testing::ExitedWithCode(kExitLacksRoom), "a library needs another thread");
}

TEST(LibraryThreadsDeathTest, WhoHandlesMissingThreadsIsTold) {
  const auto end = [] {
    EndWhereALibraryLacksAThread();
    const HandlesMissingThreads handles;
    _exit(StartAsALibraryDoes() == EAGAIN ? 77 : 0);
  };
  EXPECT_EXIT(end(), ::testing::ExitedWithCode(77), "");
}

}  // namespace
}  // namespace ferry
