#include "kernels/cpu/cpu_peaks.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

class CpuPeaksTest : public PerIsaTest<IsaCase> {
 protected:
  static std::unique_ptr<ThreadPool> MakePool() {
    ThreadPoolOptions options;
    options.num_threads = 2, options.pin = false;
    return *ThreadPool::Create(options);
  }
};

TEST_P(CpuPeaksTest, MeasuresWhatTheInstructionSetOffers) {
  const std::unique_ptr<ThreadPool> pool = MakePool();
  ASSERT_OK_AND_ASSIGN(const CpuPeaks rates, MeasureCpuPeaks(*pool, isa(), {.buffer_bytes = 1 << 20, .repetitions = 2}));
  EXPECT_EQ(rates.num_threads, 2);
  EXPECT_EQ(rates.isa, isa());
  // Bounds no machine reaches, so that a loop the compiler has emptied is noticed.
  for (const double rate : {rates.read_bytes_per_second, rates.copy_bytes_per_second}) {
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 4e12);
  }
  EXPECT_GT(rates.f32_ops_per_second, 1e6);
  EXPECT_LT(rates.f32_ops_per_second, 2 * 5e11);
  EXPECT_EQ(rates.int8_ops_per_second > 0, isa() != CpuIsa::kPortable);
  EXPECT_LT(rates.int8_ops_per_second, 2 * 2e12);
  EXPECT_EQ(rates.tile_ops_per_second > 0, isa() == CpuIsa::kAmx);
  EXPECT_LT(rates.tile_ops_per_second, 2 * 2e13);
}

TEST_P(CpuPeaksTest, ReadsTheMemoryThatItIsGiven) {
  constexpr size_t kBytes = 4 << 20, kPage = 4096;
  const int fd = memfd_create("ferry-test", 0);
  ASSERT_EQ(ftruncate(fd, kBytes), 0);
  void* const memory = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const auto resident_pages = [&] {  // a page of this file is there once somebody has read it
    std::vector<unsigned char> pages(kBytes / kPage);
    EXPECT_EQ(mincore(memory, kBytes, pages.data()), 0);
    return std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
  };
  EXPECT_EQ(resident_pages(), 0);
  const std::unique_ptr<ThreadPool> pool = MakePool();
  const CpuPeaksOptions options = {
      .buffer_bytes = 1 << 16, .memory = {static_cast<const std::byte*>(memory), kBytes}, .repetitions = 2};
  EXPECT_OK(MeasureCpuPeaks(*pool, isa(), options));
  EXPECT_EQ(resident_pages(), kBytes / kPage);
  munmap(memory, kBytes);
  close(fd);
}

TEST_P(CpuPeaksTest, RefusesSizesThatAreNotPositive) {
  const std::unique_ptr<ThreadPool> pool = MakePool();
  EXPECT_THAT(MeasureCpuPeaks(*pool, isa(), {.buffer_bytes = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("buffer_bytes")));
  EXPECT_THAT(MeasureCpuPeaks(*pool, isa(), {.buffer_bytes = 1 << 20, .repetitions = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("repetitions")));
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuPeaksTest, testing::ValuesIn(EachIsa()), NameOfCase);

}  // namespace
}  // namespace ferry
