#include "common/mapped_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <type_traits>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

static_assert(!std::is_copy_constructible_v<MappedFile> && !std::is_copy_assignable_v<MappedFile>);

// A file of two pages and a half, filled with 'x', whose name is gone again when the test ends.
class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() {
    const int descriptor = ::mkstemp(path_.data());
    const std::string text(kBytes, 'x');
    EXPECT_EQ(::write(descriptor, text.data(), text.size()), static_cast<ssize_t>(kBytes));
    ::close(descriptor);
  }
  ~MappedFileTest() override { ::unlink(path_.c_str()); }

  static constexpr size_t kBytes = 10240;
  std::string path_ = "/tmp/ferry_mapped_XXXXXX";
};

TEST_F(MappedFileTest, ShowsTheBytesOfTheFile) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  EXPECT_EQ(file.path(), path_);
  ASSERT_EQ(file.bytes().size(), kBytes);
  EXPECT_THAT(file.bytes(), testing::Each(std::byte{'x'}));
}

TEST_F(MappedFileTest, KeepsItsBytesInPlaceWhenMoved) {
  ASSERT_OK_AND_ASSIGN(MappedFile file, MappedFile::Open(path_));
  const std::byte* const data = file.bytes().data();
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.bytes().data(), data);
  ASSERT_OK_AND_ASSIGN(MappedFile other, MappedFile::Open(path_));
  other = std::move(moved);
  EXPECT_EQ(other.bytes().data(), data);
  EXPECT_EQ(other.bytes()[kBytes - 1], std::byte{'x'});
}

TEST_F(MappedFileTest, KnowsItsOwnBytes) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  EXPECT_TRUE(file.Contains(file.bytes()));
  EXPECT_TRUE(file.Contains(file.bytes().subspan(5, 7)));
  const std::byte other{};
  EXPECT_FALSE(file.Contains({&other, 1}));
}

TEST_F(MappedFileTest, ReadsReleasedPagesAgain) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  for (const auto& [first, size] : {std::pair{0u, 10240u}, {1u, 2u}, {100u, 8000u}, {10239u, 1u}, {10240u, 0u}}) {
    file.Prefetch(file.bytes().subspan(first, size));
    file.Release(file.bytes().subspan(first, size));
    EXPECT_THAT(file.bytes(), testing::Each(std::byte{'x'}));
  }
}

TEST(MappedFile, SaysWhyAFileCannotBeMapped) {
  EXPECT_THAT(MappedFile::Open("/no/such/file"), StatusIs(absl::StatusCode::kNotFound, testing::HasSubstr("/no/such")));
  EXPECT_THAT(MappedFile::Open("/dev/zero"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(MappedFileTest, SaysThatItWasWritten) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  EXPECT_OK(file.CheckUnchanged());
  const timespec later[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 1, .tv_nsec = 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), later, 0), 0);
  EXPECT_THAT(file.CheckUnchanged(), StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("was written at")));
}

TEST_F(MappedFileTest, ReadsZerosWhereTheFileWasCutAndSaysSo) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  ASSERT_EQ(::truncate(path_.c_str(), 100), 0);
  EXPECT_EQ(file.bytes()[kBytes - 1], std::byte{0});
  EXPECT_EQ(file.bytes()[0], std::byte{'x'});
  EXPECT_THAT(file.CheckUnchanged(),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("10240 bytes and has 100")));
  const std::string whole(kBytes, 'x');
  const int descriptor = ::open(path_.c_str(), O_WRONLY);
  ASSERT_EQ(::write(descriptor, whole.data(), whole.size()), static_cast<ssize_t>(kBytes));
  ::close(descriptor);
  EXPECT_FALSE(file.CheckUnchanged().ok()) << "it has its size again, but other bytes";
}

TEST_F(MappedFileTest, StaysTheSameWhenItIsDeleted) {
  ASSERT_OK_AND_ASSIGN(const MappedFile file, MappedFile::Open(path_));
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  EXPECT_OK(file.CheckUnchanged());
  EXPECT_EQ(file.bytes()[kBytes - 1], std::byte{'x'});
}

}  // namespace
}  // namespace ferry
