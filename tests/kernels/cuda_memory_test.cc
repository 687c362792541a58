// The CUDA backend's choice of a GPU, its memory, and its queues.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "common/deadline.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/testing/soon.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Batch TokensBatch(std::vector<int32_t> ids) {
  Batch batch;
  const int64_t rows = static_cast<int64_t>(ids.size());
  batch.token_ids = std::move(ids);
  if (rows > 0) batch.sequences = {{.first_row = 0, .num_rows = rows, .first_position = 0, .blocks = {}, .ring_blocks = {}}};
  return batch;
}

TEST(CudaGpu, RefusesAGpuBelow75ByName) {
  EXPECT_OK(CheckCudaGpu("GPU 0 (Tesla T4)", 7, 5));
  EXPECT_OK(CheckCudaGpu("GPU 0 (H100)", 9, 0));
  EXPECT_THAT(
      CheckCudaGpu("GPU 1 (Tesla V100)", 7, 0),
      StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("Tesla V100"), HasSubstr("7.0"), HasSubstr("7.5"))));
  EXPECT_THAT(CheckCudaGpu("GPU 1 (Tesla P100)", 6, 0), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(CudaGpu, SaysWhatIsMissingWhenThereIsNoSuchGpu) {
  EXPECT_THAT(CreateCudaOps({.kind = "cuda", .device = NumCudaDevices()}), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(CreateCudaOps({.kind = "cuda", .device = -1}), StatusIs(absl::StatusCode::kFailedPrecondition));
}

class CudaMemoryTest : public CudaTest {};

TEST_F(CudaMemoryTest, NamesItsGpuAndItsTypes) {
  EXPECT_THAT(ops_->name(), HasSubstr("cuda:0 ("));
  EXPECT_THAT(ops_->activation_dtype(), testing::AnyOf(DType::kBF16, DType::kF16));
  EXPECT_EQ(ops_->contribution_dtype(), ops_->activation_dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32);
}

TEST_F(CudaMemoryTest, AllocatesAlignedMemoryAndGivesItBack) {
  ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo before, ops_->MemoryInfo());
  {
    ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_->Allocate(int64_t{256} << 20));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
    EXPECT_EQ(buffer.bytes(), int64_t{256} << 20);
    ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo during, ops_->MemoryInfo());
    EXPECT_LE(during.free_bytes, before.free_bytes - (int64_t{200} << 20));
  }
  ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo after, ops_->MemoryInfo());
  EXPECT_EQ(after.free_bytes, before.free_bytes);
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer nothing, ops_->Allocate(0));
  EXPECT_EQ(nothing.bytes(), 0);
  EXPECT_THAT(ops_->Allocate(-1), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(CudaMemoryTest, NamesNeededAndFreeBytesWhenMemoryIsShort) {
  ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo info, ops_->MemoryInfo());
  const int64_t needed = info.total_bytes + 1;
  EXPECT_THAT(ops_->Allocate(needed), StatusIs(absl::StatusCode::kResourceExhausted,
                                               AllOf(HasSubstr(absl::StrFormat("%d bytes needed", needed)), HasSubstr("free"))));
  EXPECT_OK(ops_->Allocate(1 << 20));  // and the backend still works
}

TEST_F(CudaMemoryTest, UploadAndDownloadKeepEveryByteBeyondTheStagingBuffers) {
  for (const int64_t bytes : {int64_t{1}, int64_t{4} << 20, (int64_t{37} << 20) + 13}) {
    std::vector<uint8_t> sent(bytes);
    RandomBits random(7);
    for (uint8_t& byte : sent) byte = static_cast<uint8_t>(random.Next());
    const GuardedBytes device(ops_, BytesOf(sent));
    EXPECT_EQ(device.ReadAs<uint8_t>(), sent) << bytes;
  }
}

TEST_F(CudaMemoryTest, DownloadsOfAnySizeBeginAnywhere) {
  constexpr int64_t kMost = (256 << 10) + 32;
  std::vector<uint8_t> sent(kMost);
  RandomBits random(8);
  for (uint8_t& byte : sent) byte = static_cast<uint8_t>(random.Next());
  const GuardedBytes device(ops_, BytesOf(sent));
  AlignedBytes pinned(kMost);
  ASSERT_OK(ops_->PinHost(pinned.span(), /*read_only=*/false));
  for (const int64_t bytes : {1, 15, 16, 517, 5760, 16 << 10, (16 << 10) + 1, (256 << 10) - 3, 256 << 10, (256 << 10) + 7}) {
    for (const int64_t first : {0, 1, 4, 16}) {
      const std::span<const std::byte> want = BytesOf(sent).subspan(first, bytes);
      std::vector<std::byte> got(bytes);
      ASSERT_OK(ops_->Download(got, device.data() + first));
      ASSERT_TRUE(std::equal(want.begin(), want.end(), got.begin())) << bytes << " from " << first;
      const std::span<std::byte> there = pinned.span().subspan(first, bytes);
      std::fill(pinned.span().begin(), pinned.span().end(), std::byte{0});
      ASSERT_OK(ops_->DownloadAsync(there, device.data() + first));
      ASSERT_OK(ops_->Download(std::span(got).first(1), device.data()));  // waits for the work queued before it
      ASSERT_TRUE(std::equal(want.begin(), want.end(), there.begin())) << bytes << " from " << first;
      if (first > 0) ASSERT_EQ(pinned.span()[first - 1], std::byte{0});
      if (first + bytes < kMost) ASSERT_EQ(pinned.span()[first + bytes], std::byte{0});
    }
  }
  ops_->UnpinHost(pinned.span());
}

TEST_F(CudaMemoryTest, UploadsAreQueuedInOrderAndTheirSourceIsFreeOnReturn) {
  const GuardedBytes device(ops_, 4096);
  std::vector<int32_t> values(1024);
  for (int32_t round = 0; round < 3000; ++round) {  // 12 MB: through every staging buffer
    std::fill(values.begin(), values.end(), round);
    ASSERT_OK(ops_->Upload(device.data(), BytesOf(values)));
  }
  EXPECT_EQ(device.ReadAs<int32_t>(), std::vector<int32_t>(1024, 2999));
}

TEST_F(CudaMemoryTest, QueuesTransfersOfPinnedAndOfOtherMemory) {
  constexpr int64_t kBytes = (5 << 20) + 12;
  for (const bool pinned : {true, false}) {
    AlignedBytes host(kBytes), back(kBytes);
    RandomBits random(3);
    for (std::byte& byte : host.span()) byte = static_cast<std::byte>(random.Next());
    if (pinned) {
      ASSERT_OK(ops_->PinHost(host.span(), /*read_only=*/false));
      ASSERT_OK(ops_->PinHost(back.span(), /*read_only=*/false));
    }
    const GuardedBytes device(ops_, kBytes), copy(ops_, kBytes);
    ASSERT_OK(ops_->UploadAsync(device.data(), host.span()));
    ASSERT_OK(ops_->GatherRows({device.data(), DType::kF32, 1, kBytes / 4}, std::vector<int32_t>{0},
                               {copy.data(), DType::kF32, 1, kBytes / 4}));
    ASSERT_OK(ops_->DownloadAsync(back.span(), copy.data()));
    ASSERT_OK_AND_ASSIGN(const Event done, ops_->MarkCompute());
    ASSERT_OK(ops_->Wait(done, Soon()));
    EXPECT_TRUE(std::equal(host.span().begin(), host.span().end(), back.span().begin())) << "pinned: " << pinned;
    if (!pinned) continue;
    EXPECT_THAT(ops_->UploadAsync(device.data(), std::span(host.span().data() - 16, 32)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host_src of 32 bytes crosses the end")));
    ops_->UnpinHost(host.span());
    ops_->UnpinHost(back.span());
  }
}

TEST_F(CudaMemoryTest, CopiesManyPiecesTogether) {
  // 3,000 pieces, more than a launch has blocks. 24 bytes are no whole words of the kernel, so those go one by one.
  for (const int64_t bytes : {4096, 16, 24}) {
    for (const bool pinned : {true, false}) {
      constexpr int64_t kPieces = 3000;
      AlignedBytes host(kPieces * bytes), back(kPieces * bytes);
      RandomBits random(3);
      for (std::byte& byte : host.span()) byte = static_cast<std::byte>(random.Next());
      if (pinned) {
        ASSERT_OK(ops_->PinHost(host.span(), /*read_only=*/false));
        ASSERT_OK(ops_->PinHost(back.span(), /*read_only=*/false));
      }
      const GuardedBytes device(ops_, kPieces * bytes);
      std::vector<HostCopy> up, down;
      for (int64_t i = 0; i < kPieces; ++i) {  // device pieces in another order than those of the host
        std::byte* const piece = device.data() + i * 7 % kPieces * bytes;
        up.push_back({host.span().subspan(i * bytes, bytes), piece});
        down.push_back({back.span().subspan(i * bytes, bytes), piece});
      }
      ASSERT_OK(ops_->UploadAllAsync(up));
      ASSERT_OK(ops_->DownloadAllAsync(down));
      ASSERT_OK_AND_ASSIGN(const Event done, ops_->MarkCompute());
      ASSERT_OK(ops_->Wait(done, Soon()));
      EXPECT_TRUE(std::equal(host.span().begin(), host.span().end(), back.span().begin())) << bytes << ", pinned: " << pinned;
      if (!pinned) continue;
      ops_->UnpinHost(host.span());
      ops_->UnpinHost(back.span());
    }
  }
}

TEST_F(CudaMemoryTest, CopiesAfterTheComputeThatReadsTheTarget) {
  constexpr int64_t kBytes = 8 << 20;
  AlignedBytes host(kBytes);
  std::fill(host.span().begin(), host.span().end(), std::byte{0x11});
  ASSERT_OK(ops_->PinHost(host.span(), /*read_only=*/false));
  const GuardedBytes target(ops_, kBytes), copy(ops_, kBytes);
  const std::vector<std::byte> first(kBytes, std::byte{0x22});
  ASSERT_OK(ops_->Upload(target.data(), first));
  const std::vector<int32_t> rows = {0};
  ASSERT_OK(ops_->GatherRows({target.data(), DType::kF32, 1, kBytes / 4}, rows, {copy.data(), DType::kF32, 1, kBytes / 4}));
  ASSERT_OK_AND_ASSIGN(const Event read, ops_->MarkCompute());
  ASSERT_OK_AND_ASSIGN(const Event copied, ops_->CopyAsync(target.data(), host.span(), std::vector<Event>{read, nullptr}));
  ASSERT_OK(ops_->ComputeAfter(copied));
  EXPECT_EQ(copy.Read(), first);
  EXPECT_EQ(target.Read(), std::vector<std::byte>(host.span().begin(), host.span().end()));
  EXPECT_TRUE(ops_->Passed(copied));
  EXPECT_TRUE(ops_->Passed(Event()));
  EXPECT_OK(ops_->ComputeAfter(Event()));
  EXPECT_OK(ops_->Wait(Event(), Deadline::In(absl::ZeroDuration())));
  ops_->UnpinHost(host.span());
  ASSERT_OK_AND_ASSIGN(const Event unpinned, ops_->CopyAsync(target.data(), host.span(), {}));  // slower, but it works
  EXPECT_OK(ops_->Wait(unpinned, Soon()));
}

TEST_F(CudaMemoryTest, PinsASealedReadOnlyMapping) {
  constexpr int64_t kBytes = 2 << 20;
  const int fd = memfd_create("cuda_ops_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, kBytes), 0);
  auto* const writable = static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(writable, MAP_FAILED);
  std::fill_n(writable, kBytes, std::byte{0x5A});
  auto* const sealed = static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0));
  ASSERT_NE(sealed, MAP_FAILED);
  munmap(writable, kBytes);
  const std::span<const std::byte> region(sealed, kBytes);
  ASSERT_OK(ops_->PinHost(region, /*read_only=*/true));
  const GuardedBytes target(ops_, kBytes);
  ASSERT_OK_AND_ASSIGN(const Event copied, ops_->CopyAsync(target.data(), region, {}));
  ASSERT_OK(ops_->Wait(copied, Soon()));
  EXPECT_EQ(target.Read(), std::vector<std::byte>(kBytes, std::byte{0x5A}));
  ASSERT_OK_AND_ASSIGN(const std::byte* const address, ops_->AddressOfHost(region.subspan(64, 256)));
  EXPECT_NE(address, nullptr);
  EXPECT_THAT(ops_->AddressOfHost({sealed, kBytes + 1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("crosses")));
  ops_->UnpinHost(region);
  munmap(sealed, kBytes);
  close(fd);
}

TEST_F(CudaMemoryTest, RefusesWhatCrossesOrOverlapsPinnedRegions) {
  AlignedBytes host(64 << 10);
  const auto region = std::span<const std::byte>(host.span()).subspan(16 << 10, 32 << 10);
  const GuardedBytes target(ops_, 64 << 10);
  ASSERT_OK(ops_->PinHost(region, false));
  EXPECT_THAT(ops_->PinHost({}, false), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ops_->PinHost(host.span(), false), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("overlaps")));
  const std::span<const std::byte> all = host.span();
  EXPECT_OK(ops_->CopyAsync(target.data(), region, {}));
  EXPECT_OK(ops_->CopyAsync(target.data(), region.subspan(4096, 17), {}));
  EXPECT_OK(ops_->CopyAsync(target.data(), all.first(16 << 10), {}));
  EXPECT_OK(ops_->CopyAsync(target.data(), all.last(16 << 10), {}));
  for (const auto crossing : {all, all.first((16 << 10) + 1), all.last((16 << 10) + 1)}) {
    EXPECT_THAT(ops_->CopyAsync(target.data(), crossing, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("crosses")));
  }
  EXPECT_OK(ops_->Synchronize(Soon()));
  ops_->UnpinHost(region);
  ops_->UnpinHost(region);  // a second time: nothing
}

TEST_F(CudaMemoryTest, AWaitEndsAtItsDeadline) {
  constexpr int64_t kRows = 4096, kCols = 8192;
  const DeviceRowsBuffer x(ops_, DType::kF32, kRows, kCols);
  const GuardedBytes weight(ops_, BytesOf(std::vector<float>(kCols, 1.0f)));
  for (int i = 0; i < 100; ++i) ASSERT_OK(ops_->RmsNorm(x.tensor(), weight.as<float>(), 1e-5, x.tensor()));
  ASSERT_OK_AND_ASSIGN(const Event event, ops_->MarkCompute());  // 27 GB of traffic ahead of it
  EXPECT_FALSE(ops_->Passed(event));
  EXPECT_THAT(ops_->Wait(event, Deadline::In(absl::Microseconds(50))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(ops_->Synchronize(Deadline::In(absl::ZeroDuration())),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("RmsNorm")));
  EXPECT_OK(ops_->Wait(event, Soon()));
  EXPECT_TRUE(ops_->Passed(event));
  EXPECT_OK(ops_->Synchronize(Soon()));
}

class OtherEvent final : public EventState {};
class OtherBatch final : public DeviceBatch {
 public:
  OtherBatch() : DeviceBatch(TokensBatch({1})) {}
};

TEST_F(CudaMemoryTest, RefusesEventsAndBatchesOfAnotherBackend) {
  const Event other = std::make_shared<OtherEvent>();
  std::byte source[16];
  const DeviceRowsBuffer x(ops_, DType::kF32, 1, 32);
  EXPECT_THAT(ops_->ComputeAfter(other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another backend")));
  EXPECT_THAT(ops_->Wait(other, Soon()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ops_->CopyAsync(x.tensor().data, source, std::vector<Event>{other}), StatusIs(absl::StatusCode::kInvalidArgument));
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  EXPECT_THAT(ops_->Embed(OtherBatch(), 0, table.matrix, x.tensor()), StatusIs(absl::StatusCode::kInvalidArgument));
}

// A kernel that reads unmapped memory poisons the CUDA context, so this runs in a process of its own.
TEST_F(CudaMemoryTest, AFaultOfAKernelIsInternalAndNamesTheOperation) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        auto ops = CreateCudaOps({});
        auto out = (*ops)->Allocate(1024);
        const Tensor nowhere(reinterpret_cast<void*>(uintptr_t{1} << 20), DType::kF32, 4, 32);
        const std::vector<int32_t> rows = {1};
        const absl::Status queued = (*ops)->GatherRows(nowhere, rows, {out->data(), DType::kF32, 1, 32});
        const absl::Status seen = (*ops)->Synchronize(Deadline::In(absl::Seconds(10)));
        std::fprintf(stderr, "queued: %s\nseen: %s\n", queued.ToString().c_str(), seen.ToString().c_str());
        _exit(queued.ok() && seen.code() == absl::StatusCode::kInternal ? 3 : 4);
      },
      testing::ExitedWithCode(3), "seen: INTERNAL: cuda:0 .*after GatherRows was queued");
}

}  // namespace
}  // namespace ferry
