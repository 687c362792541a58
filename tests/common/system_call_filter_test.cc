#include "common/system_call_filter.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <thread>

namespace ferry {
namespace {

constexpr int kNoFilter = 254, kDied = -1;

// What `body` returns in a process of its own that has the filter.
int WithFilter(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(BoundSystemCalls() ? body() : kNoFilter);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : kDied;
}

// 0, or the error.
int ErrorOf(long result) { return result >= 0 ? 0 : errno; }

class SystemCallFilterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (WithFilter([] { return 0; }) == kNoFilter) GTEST_SKIP() << "this kernel, or a filter, allows no filter of system calls";
  }
};

TEST_F(SystemCallFilterTest, NothingIsExecuted) {
  EXPECT_EQ(WithFilter([] { return ErrorOf(::execl("/bin/true", "true", nullptr)); }), EPERM);
}

TEST_F(SystemCallFilterTest, NoOtherProcessIsTracedOrRead) {
  EXPECT_EQ(WithFilter([] { return ErrorOf(::ptrace(PTRACE_SEIZE, ::getppid(), nullptr, nullptr)); }), EPERM);
  EXPECT_EQ(WithFilter([] { return ErrorOf(::syscall(SYS_process_vm_readv, ::getpid(), nullptr, 0, nullptr, 0, 0)); }), EPERM);
}

TEST_F(SystemCallFilterTest, NamespacesAndRingsStayClosed) {
  EXPECT_EQ(WithFilter([] { return ErrorOf(::unshare(CLONE_NEWUSER)); }), EPERM);
  EXPECT_EQ(WithFilter([] { return ErrorOf(::chroot("/")); }), EPERM);
  EXPECT_EQ(WithFilter([] { return ErrorOf(::syscall(SYS_io_uring_setup, 1, nullptr)); }), EPERM);
}

TEST_F(SystemCallFilterTest, SocketsAreThoseThatFerryUses) {
  for (const int family : {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK}) {
    EXPECT_NE(WithFilter([&] { return ErrorOf(::socket(family, family == AF_NETLINK ? SOCK_RAW : SOCK_STREAM, 0)); }), EPERM)
        << family;
  }
  for (const int family : {AF_PACKET, AF_ALG, AF_VSOCK}) {
    EXPECT_EQ(WithFilter([&] { return ErrorOf(::socket(family, SOCK_RAW, 0)); }), EPERM) << family;
  }
}

TEST_F(SystemCallFilterTest, ThreadsInheritItAndWorkOn) {
  EXPECT_EQ(WithFilter([] {
              int executed = 0, opened = 0, resolved = 0;
              std::thread([&] {
                executed = ErrorOf(::execl("/bin/true", "true", nullptr));
                opened = ErrorOf(::open("/dev/null", O_RDONLY | O_CLOEXEC));
                addrinfo* found = nullptr;
                resolved = ::getaddrinfo("127.0.0.1", "80", nullptr, &found);
                if (found != nullptr) ::freeaddrinfo(found);
              }).join();
              return executed == EPERM && opened == 0 && resolved == 0 ? 0 : 1;
            }),
            0);
}

}  // namespace
}  // namespace ferry
