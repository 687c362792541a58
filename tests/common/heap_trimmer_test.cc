#include "common/heap_trimmer.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/host_memory.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

bool UnderASanitizer() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

TEST(HeapTrimmer, GivesBackWhatLiesBetweenWhatIsInUse) {
  if (UnderASanitizer()) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  ::malloc_trim(0);  // what earlier tests freed would take the pieces without growing the process
  const int64_t before = ResidentBytes();
  std::vector<std::unique_ptr<std::vector<char>>> pieces;
  for (int i = 0; i < 6400; ++i) pieces.push_back(std::make_unique<std::vector<char>>(10000, 'x'));
  const int64_t peak = ResidentBytes();
  ASSERT_GE(peak, before + 60 * kMiB);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i % 100 != 0) pieces[i].reset();  // the rest stays in use
  }
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RepeatingThread> trimmer, StartHeapTrimmer(absl::Milliseconds(1)));
  const Deadline end = Deadline::In(absl::Seconds(30));
  while (ResidentBytes() > peak - 40 * kMiB && !end.Passed()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_LE(ResidentBytes(), peak - 40 * kMiB);
}

}  // namespace
}  // namespace ferry
