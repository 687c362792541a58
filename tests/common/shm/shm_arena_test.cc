#include "common/shm/shm_arena.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "common/host_memory.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

TEST(ShmArena, GivesAnotherMappingTheSameBytes) {
  for (const int64_t bytes : {int64_t{1}, int64_t{5000}, int64_t{5} << 20}) {
    ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", bytes));
    ASSERT_EQ(arena.writable().size(), static_cast<size_t>(bytes));
    arena.writable().front() = arena.writable().back() = std::byte{7};
    ASSERT_OK(arena.Seal());
    ASSERT_OK_AND_ASSIGN(ShmArena reader, ShmArena::MapReadOnly(::dup(arena.fd()), bytes));
    EXPECT_EQ(reader.bytes().size(), static_cast<size_t>(bytes));
    EXPECT_EQ(reader.bytes().front(), std::byte{7});
    EXPECT_EQ(reader.bytes().back(), std::byte{7});
    EXPECT_TRUE(reader.writable().empty());
  }
}

TEST(ShmArena, StartsAsZeros) {
  ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::Create("arena", 10000));
  for (const std::byte byte : arena.bytes()) ASSERT_EQ(byte, std::byte{0});
}

TEST(ShmArena, KeepsItsAddressAndItsBytesWhenSealed) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 5 << 20));
  std::memset(arena.writable().data(), 0x5A, arena.writable().size());
  const std::byte* before = arena.bytes().data();
  ASSERT_OK(arena.Seal());
  EXPECT_EQ(arena.bytes().data(), before);
  EXPECT_EQ(arena.bytes()[(5 << 20) - 1], std::byte{0x5A});
}

TEST(ShmArena, KeepsItsBytesWhateverPagesTheyLieIn) {
  constexpr int64_t kBytes = 5 << 20;  // two huge pages and a half
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", kBytes));
  std::memset(arena.writable().data() + 1000, 0x5A, 3 << 20);      // the first is touched, the second in part
  for (const int64_t number : {0, 1}) arena.MakeHugePage(number);  // whether it works is the machine's affair
  for (int64_t i = 0; i < kBytes; ++i) {
    ASSERT_EQ(arena.bytes()[i], i >= 1000 && i < 1000 + (3 << 20) ? std::byte{0x5A} : std::byte{0}) << i;
  }
}

TEST(ShmArena, MakesNoHugePageBeyondItsBytes) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 5 << 20));
  if (arena.huge_pages()) GTEST_SKIP() << "all of its pages are huge: this machine has them reserved";
  EXPECT_FALSE(arena.MakeHugePage(-1));
  EXPECT_FALSE(arena.MakeHugePage(2));
}

TEST(ShmArena, CannotBeWrittenOrResizedOnceSealed) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 8192));
  ASSERT_OK(arena.Seal());
  EXPECT_TRUE(arena.writable().empty());
  EXPECT_NE(::ftruncate(arena.fd(), 4096), 0);
  EXPECT_NE(::ftruncate(arena.fd(), 16384), 0);
  EXPECT_LT(::pwrite(arena.fd(), "x", 1, 0), 0);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd(), 0), MAP_FAILED);
  // Not even our own mapping can be made writable again.
  EXPECT_NE(::mprotect(const_cast<std::byte*>(arena.bytes().data()), 4096, PROT_READ | PROT_WRITE), 0);
  EXPECT_THAT(arena.Seal(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ShmArena, IsReadByAnotherProcess) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 8192));
  arena.writable()[8191] = std::byte{42};
  ASSERT_OK(arena.Seal());
  const pid_t child = ::fork();
  if (child == 0) {
    const auto reader = ShmArena::MapReadOnly(::dup(arena.fd()), 8192);
    ::_exit(reader.ok() && reader->bytes()[8191] == std::byte{42} ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// What this process has in its page tables of the mapping at `address`. In /proc/self/smaps a line "7f..-7f.. r--s ..." begins a
// mapping, and "Rss: 123 kB" is one of those that follow.
int64_t MappedBytes(const std::byte* address) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool here = false;
  while (std::getline(smaps, line)) {
    uintptr_t begin = 0, end = 0;
    int64_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      here = begin <= reinterpret_cast<uintptr_t>(address) && reinterpret_cast<uintptr_t>(address) < end;
    } else if (here && std::sscanf(line.c_str(), "Rss: %ld kB", &kilobytes) == 1) {
      return kilobytes << 10;
    }
  }
  return -1;
}

TEST(ShmArena, HasItsPagesAtHandOnceTouched) {
  constexpr int64_t kBytes = 32 << 20;
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", kBytes));
  std::memset(arena.writable().data(), 1, kBytes);
  ASSERT_OK(arena.Seal());
  if (arena.huge_pages()) GTEST_SKIP() << "reserved huge pages are not counted as resident";
  EXPECT_EQ(MappedBytes(arena.bytes().data()), 0) << "sealing maps it anew";
  arena.Touch(0, 1);
  EXPECT_GT(MappedBytes(arena.bytes().data()), 0);
  arena.Touch(4096, kBytes);  // beyond the end, which is cut
  EXPECT_EQ(MappedBytes(arena.bytes().data()), kBytes);
}

TEST(ShmArena, MovesWithItsMapping) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 4096));
  const std::byte* data = arena.bytes().data();
  ShmArena other = std::move(arena);
  EXPECT_EQ(other.bytes().data(), data);
  EXPECT_TRUE(arena.bytes().empty());  // NOLINT: what moving leaves is part of the contract
}

TEST(ShmArena, RefusesADescriptorThatMayShrink) {
  ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::Create("arena", 4096));
  EXPECT_THAT(ShmArena::MapReadOnly(::dup(arena.fd()), 4096),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not sealed against shrinking")));
}

TEST(ShmArena, RefusesADescriptorThatIsTooSmall) {
  ASSERT_OK_AND_ASSIGN(ShmArena arena, ShmArena::Create("arena", 4096));
  ASSERT_OK(arena.Seal());
  EXPECT_THAT(ShmArena::MapReadOnly(::dup(arena.fd()), 4097),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds 4096 bytes, want at least 4097")));
}

TEST(ShmArena, RefusesADescriptorThatIsFarTooLarge) {
  for (const int64_t bytes : {int64_t{4096} + ShmArena::kHugePage, std::numeric_limits<int64_t>::max()}) {
    const int fd = ::memfd_create("large", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ASSERT_EQ(::ftruncate(fd, bytes), 0);
    ASSERT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    EXPECT_THAT(ShmArena::MapReadOnly(fd, 4096),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want 4096 and less than a page beyond")));
  }
}

TEST(ShmArena, RefusesADescriptorThatIsNoSharedMemory) {
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  EXPECT_THAT(ShmArena::MapReadOnly(pipe[0], 4096), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(::fcntl(pipe[0], F_GETFD), -1) << "the descriptor is taken, also when it is refused";
  EXPECT_THAT(ShmArena::MapReadOnly(-1, 4096), StatusIs(absl::StatusCode::kInvalidArgument));
  ::close(pipe[1]);
}

TEST(ShmArena, RefusesMoreThanTheMachineHasAndNamesBoth) {
  const int64_t wanted = int64_t{1} << 46;
  EXPECT_THAT(ShmArena::Create("arena", wanted),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       testing::AllOf(HasSubstr("needs " + std::to_string(wanted) + " bytes"), HasSubstr("available"))));
  EXPECT_THAT(ShmArena::Create("arena", 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(HostMemory, IsLessThanTheMachineHas) {
  const HostMemory memory = ReadHostMemory();
  EXPECT_GT(memory.available_bytes, 0);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
  EXPECT_FALSE(memory.limited_by.empty());
}

}  // namespace
}  // namespace ferry
