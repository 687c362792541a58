#include "worker/pages_ahead.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "absl/time/clock.h"
#include "tests/testing/soon.h"

namespace ferry {
namespace {

constexpr int64_t kPage = 4096, kMiB = 1 << 20;

template <typename Condition>
bool BecomesTrue(const Condition& condition) {
  for (const Deadline end = Soon(); !end.Passed(); absl::SleepFor(absl::Milliseconds(1))) {
    if (condition()) return true;
  }
  return false;
}

class PagesAheadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    void* const data = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(data, MAP_FAILED);
    memory_ = {static_cast<std::byte*>(data), kBytes};
    constexpr int kPopulate = 23;  // MADV_POPULATE_WRITE
    if (madvise(data, kPage, kPopulate) != 0) GTEST_SKIP() << "this kernel is older than 5.14 and gets no pages ahead";
    madvise(data, kPage, MADV_DONTNEED);
  }
  ~PagesAheadTest() override {
    if (!memory_.empty()) munmap(memory_.data(), memory_.size());
  }
  // Pages of [first, end) that are there.
  int64_t Present(int64_t first, int64_t end) const {
    std::vector<unsigned char> present((end - first) / kPage);
    EXPECT_EQ(mincore(memory_.data() + first, end - first, present.data()), 0);
    return std::count_if(present.begin(), present.end(), [](unsigned char page) { return (page & 1) != 0; });
  }

  static constexpr int64_t kBytes = 64 * kMiB;
  std::span<std::byte> memory_;
};

TEST_F(PagesAheadTest, GetsWhatIsWantedAndNoMore) {
  PagesAhead ahead(memory_);
  EXPECT_EQ(Present(0, kBytes), 0);
  ahead.Want(20 * kMiB);
  EXPECT_TRUE(BecomesTrue([&] { return Present(0, 20 * kMiB) == 20 * kMiB / kPage; }));
  ahead.Want(10 * kMiB);
  ahead.Want(24 * kMiB);
  EXPECT_TRUE(BecomesTrue([&] { return Present(0, 24 * kMiB) == 24 * kMiB / kPage; }));
  EXPECT_EQ(Present(32 * kMiB, kBytes), 0);  // huge pages may bring a few more than wanted
}

TEST_F(PagesAheadTest, ManyMoreThanThereAreAreAll) {
  PagesAhead ahead(memory_);
  ahead.Want(1000 * kMiB);
  EXPECT_TRUE(BecomesTrue([&] { return Present(0, kBytes) == kBytes / kPage; }));
}

TEST_F(PagesAheadTest, WhatWasWrittenStays) {
  memory_[5 * kMiB] = std::byte{7};
  PagesAhead ahead(memory_);
  ahead.Want(kBytes);
  EXPECT_TRUE(BecomesTrue([&] { return Present(0, kBytes) == kBytes / kPage; }));
  EXPECT_EQ(memory_[5 * kMiB], std::byte{7});
}

TEST_F(PagesAheadTest, EndsAtOnce) {
  PagesAhead ahead(memory_);
  ahead.Want(kBytes);
}

}  // namespace
}  // namespace ferry
