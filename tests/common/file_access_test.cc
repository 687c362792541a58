#include "common/file_access.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <functional>

#include "common/output_file.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

// What `body` returns in a process of its own, which may open only what `access` says; -1: that went wrong.
int WithAccess(const FileAccess& access, const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(BoundFileAccess(access).value_or(false) ? body() : 255);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) != 255 ? WEXITSTATUS(status) : -1;
}

// 0, or the error.
int Opens(const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (file < 0) return errno;
  ::close(file);
  return 0;
}

class FileAccessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasLandlock()) GTEST_SKIP() << "this kernel has no Landlock";
    for (const std::string& folder : {model_, cache_, other_}) {
      ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
      ASSERT_EQ(Opens(folder + "/file", O_WRONLY | O_CREAT), 0);
    }
  }

  const SocketFolder folder_;
  const std::string model_ = folder_.path() + "/model", cache_ = folder_.path() + "/cache", other_ = folder_.path() + "/other";
};

TEST_F(FileAccessTest, ReadsAndWritesWhatItMayAndNothingElse) {
  const FileAccess access = {.readable = {model_, folder_.path() + "/missing"}, .writable = {cache_}};
  const auto opens = [&](const std::string& path, int flags) { return WithAccess(access, [&] { return Opens(path, flags); }); };
  EXPECT_EQ(opens(model_ + "/file", O_RDONLY), 0);
  EXPECT_EQ(opens(model_ + "/file", O_WRONLY), EACCES);
  EXPECT_EQ(opens(model_ + "/new", O_WRONLY | O_CREAT), EACCES);
  EXPECT_EQ(opens(cache_ + "/file", O_RDWR | O_TRUNC), 0);
  EXPECT_EQ(opens(cache_ + "/new", O_WRONLY | O_CREAT), 0);
  EXPECT_EQ(opens(other_ + "/file", O_RDONLY), EACCES);
  EXPECT_EQ(opens("/etc/passwd", O_RDONLY), EACCES);
}

TEST_F(FileAccessTest, AFileAloneMayBeNamed) {
  const FileAccess access = {.readable = {}, .writable = {other_ + "/file"}};
  EXPECT_EQ(WithAccess(access, [&] { return Opens(other_ + "/file", O_RDWR); }), 0);
  EXPECT_EQ(WithAccess(access, [&] { return Opens(other_ + "/new", O_WRONLY | O_CREAT); }), EACCES);
}

TEST_F(FileAccessTest, FilesAreReplacedInAFolderThatMayBeWritten) {
  EXPECT_EQ(WithAccess({.readable = {}, .writable = {cache_}},
                       [&] { return WriteOutputFile(cache_ + "/file", {.flag = "", .force = true}, "new").ok() ? 0 : 1; }),
            0);
}

TEST_F(FileAccessTest, NothingIsExecuted) {
  EXPECT_EQ(WithAccess({.readable = {"/"}, .writable = {}},
                       [] {
                         ::execl("/bin/true", "true", nullptr);
                         return errno;
                       }),
            EACCES);
}

}  // namespace
}  // namespace ferry
