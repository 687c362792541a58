// The CUDA backend against the reference: everything but attention (cuda_attention_test.cc) and the products' own
// tests.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include "absl/time/clock.h"
#include "kernels/kv_cache_format.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

Batch TokensBatch(std::vector<int32_t> ids) {
  Batch batch;
  const int64_t rows = static_cast<int64_t>(ids.size());
  batch.token_ids = std::move(ids);
  if (rows > 0) batch.sequences = {{.first_row = 0, .num_rows = rows, .first_position = 0, .blocks = {}, .ring_blocks = {}}};
  return batch;
}

// ----------------------------------------------------------------------------------------------------------------
// creation

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

class CudaOpsTest : public CudaTest {};

TEST_F(CudaOpsTest, NamesItsGpuAndItsTypes) {
  EXPECT_THAT(ops_->name(), HasSubstr("cuda:0 ("));
  EXPECT_THAT(ops_->activation_dtype(), testing::AnyOf(DType::kBF16, DType::kF16));
  EXPECT_EQ(ops_->contribution_dtype(), ops_->activation_dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32);
}

// ------------------------------------------------------------------------------------------------------- memory and
// queues

TEST_F(CudaOpsTest, AllocatesAlignedMemoryAndGivesItBack) {
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

TEST_F(CudaOpsTest, NamesNeededAndFreeBytesWhenMemoryIsShort) {
  ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo info, ops_->MemoryInfo());
  const int64_t needed = info.total_bytes + 1;
  EXPECT_THAT(ops_->Allocate(needed), StatusIs(absl::StatusCode::kResourceExhausted,
                                               AllOf(HasSubstr(absl::StrFormat("%d bytes needed", needed)), HasSubstr("free"))));
  EXPECT_OK(ops_->Allocate(1 << 20));  // and the backend still works
}

TEST_F(CudaOpsTest, UploadAndDownloadKeepEveryByteBeyondTheStagingBuffers) {
  for (const int64_t bytes : {int64_t{1}, int64_t{4} << 20, (int64_t{37} << 20) + 13}) {
    std::vector<uint8_t> sent(bytes);
    RandomBits random(7);
    for (uint8_t& byte : sent) byte = static_cast<uint8_t>(random.Next());
    const GuardedBytes device(ops_, BytesOf(sent));
    EXPECT_EQ(device.ReadAs<uint8_t>(), sent) << bytes;
  }
}

TEST_F(CudaOpsTest, DownloadsOfAnySizeBeginAnywhere) {
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
      ASSERT_OK(ops_->Download(std::span(got).first(1), device.data()));  // waits for what is queued before it
      ASSERT_TRUE(std::equal(want.begin(), want.end(), there.begin())) << bytes << " from " << first;
      if (first > 0) ASSERT_EQ(pinned.span()[first - 1], std::byte{0});
      if (first + bytes < kMost) ASSERT_EQ(pinned.span()[first + bytes], std::byte{0});
    }
  }
  ops_->UnpinHost(pinned.span());
}

TEST_F(CudaOpsTest, UploadsAreQueuedInOrderAndTheirSourceIsFreeOnReturn) {
  const GuardedBytes device(ops_, 4096);
  std::vector<int32_t> values(1024);
  for (int32_t round = 0; round < 3000; ++round) {  // 12 MB: through every staging buffer
    std::fill(values.begin(), values.end(), round);
    ASSERT_OK(ops_->Upload(device.data(), BytesOf(values)));
  }
  EXPECT_EQ(device.ReadAs<int32_t>(), std::vector<int32_t>(1024, 2999));
}

TEST_F(CudaOpsTest, UploadsAndDownloadsBehindComputeFromPinnedMemoryAndFromOther) {
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

TEST_F(CudaOpsTest, CopiesFromPinnedMemoryAfterTheComputeThatStillReadsTheTarget) {
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
  EXPECT_OK(ops_->Wait(Event(), absl::InfinitePast()));
  ops_->UnpinHost(host.span());
  ASSERT_OK_AND_ASSIGN(const Event unpinned, ops_->CopyAsync(target.data(), host.span(), {}));  // slower, but it works
  EXPECT_OK(ops_->Wait(unpinned, Soon()));
}

TEST_F(CudaOpsTest, PinsASealedReadOnlyMapping) {
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
  ops_->UnpinHost(region);
  munmap(sealed, kBytes);
  close(fd);
}

TEST_F(CudaOpsTest, RefusesWhatCrossesOrOverlapsPinnedRegions) {
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

TEST_F(CudaOpsTest, AWaitEndsAtItsDeadline) {
  constexpr int64_t kRows = 4096, kCols = 8192;
  const DeviceRowsBuffer x(ops_, DType::kF32, kRows, kCols);
  const GuardedBytes weight(ops_, BytesOf(std::vector<float>(kCols, 1.0f)));
  for (int i = 0; i < 100; ++i) ASSERT_OK(ops_->RmsNorm(x.tensor(), weight.as<float>(), 1e-5, x.tensor()));
  ASSERT_OK_AND_ASSIGN(const Event event, ops_->MarkCompute());  // 27 GB of traffic ahead of it
  EXPECT_FALSE(ops_->Passed(event));
  EXPECT_THAT(ops_->Wait(event, absl::Now() + absl::Microseconds(50)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(ops_->Synchronize(absl::Now()), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("RmsNorm")));
  EXPECT_OK(ops_->Wait(event, Soon()));
  EXPECT_TRUE(ops_->Passed(event));
  EXPECT_OK(ops_->Synchronize(Soon()));
}

class OtherEvent final : public EventState {};
class OtherBatch final : public DeviceBatch {
 public:
  OtherBatch() : DeviceBatch(TokensBatch({1})) {}
};

TEST_F(CudaOpsTest, RefusesEventsAndBatchesOfAnotherBackend) {
  const Event other = std::make_shared<OtherEvent>();
  std::byte source[16];
  const DeviceRowsBuffer x(ops_, DType::kF32, 1, 32);
  EXPECT_THAT(ops_->ComputeAfter(other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another backend")));
  EXPECT_THAT(ops_->Wait(other, Soon()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ops_->CopyAsync(x.tensor().data, source, std::vector<Event>{other}), StatusIs(absl::StatusCode::kInvalidArgument));
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  EXPECT_THAT(ops_->Embed(OtherBatch(), 0, table.matrix, x.tensor()), StatusIs(absl::StatusCode::kInvalidArgument));
}

// A kernel that reads what is not there poisons the CUDA context, so this runs in a process of its own.
TEST_F(CudaOpsTest, AFaultOfAKernelIsInternalAndNamesTheOperation) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        auto ops = CreateCudaOps({});
        auto out = (*ops)->Allocate(1024);
        const Tensor nowhere(reinterpret_cast<void*>(uintptr_t{1} << 20), DType::kF32, 4, 32);
        const std::vector<int32_t> rows = {1};
        const absl::Status queued = (*ops)->GatherRows(nowhere, rows, {out->data(), DType::kF32, 1, 32});
        const absl::Status seen = (*ops)->Synchronize(absl::Now() + absl::Seconds(10));
        std::fprintf(stderr, "queued: %s\nseen: %s\n", queued.ToString().c_str(), seen.ToString().c_str());
        _exit(queued.ok() && seen.code() == absl::StatusCode::kInternal ? 3 : 4);
      },
      testing::ExitedWithCode(3), "seen: INTERNAL: cuda:0 .*after GatherRows was queued");
}

// ---------------------------------------------------------------------------------------------------------- rows of a
// model

class CudaEmbedTest : public CudaCaseTest<std::tuple<DType, int64_t>> {};
TEST_P(CudaEmbedTest, DecodesTheRowsOfTheTable) {
  const auto [dtype, cols] = GetParam();
  constexpr int64_t kVocab = 53;
  const OwnedTiledMatrix table = RandomTiledMatrix(dtype, kVocab, cols, 11);
  const GuardedBytes device_table(ops_, table.memory.span());
  const std::vector<int32_t> ids = {52, 0, 17, 17, 1, 31, 16, 15, 50};
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch(TokensBatch(ids)));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(TokensBatch(ids)));
  for (const int64_t first : {0, 2}) {
    const int64_t rows = static_cast<int64_t>(ids.size()) - first;
    const DeviceRowsBuffer x(ops_, DType::kF32, rows, cols, /*gap=*/3);
    ASSERT_OK(ops_->Embed(*batch, first, {table.matrix.layout, device_table.data()}, x.tensor()));
    std::vector<float> want(rows * cols);
    ASSERT_OK(reference_.Embed(*host_batch, first, table.matrix, HostTensor(want, rows, cols)));
    EXPECT_EQ(x.Read(), want);
  }
}
INSTANTIATE_TEST_SUITE_P(Types, CudaEmbedTest,
                         testing::Combine(testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                                                          DType::kMXFP4),
                                          testing::Values(32, 288, 2880)));

TEST_F(CudaOpsTest, EmbedRefusesIdsBeyondTheTable) {
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch(TokensBatch({3, 16})));
  const DeviceRowsBuffer x(ops_, DType::kF32, 2, 32);
  EXPECT_THAT(ops_->Embed(*batch, 0, table.matrix, x.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token_ids[1] is 16")));
}

struct NormCase {
  int64_t rows, cols, gap;
};
class CudaRmsNormTest : public CudaCaseTest<NormCase> {};
TEST_P(CudaRmsNormTest, MatchesReference) {
  const auto [rows, cols, gap] = GetParam();
  std::vector<float> x = RandomFloats(rows * cols, 3, 2.5f), weight = RandomFloats(cols, 4), want(rows * cols);
  const DeviceRowsBuffer device_x(ops_, DType::kF32, x, rows, cols, gap);
  const GuardedBytes device_weight(ops_, BytesOf(weight));
  ASSERT_OK(reference_.RmsNorm(HostTensor(x, rows, cols), weight.data(), 1e-5, HostTensor(want, rows, cols)));
  for (const DType dtype : {DType::kF32, act()}) {
    const DeviceRowsBuffer out(ops_, dtype, rows, cols, gap);
    ASSERT_OK(ops_->RmsNorm(device_x.tensor(), device_weight.as<float>(), 1e-5, out.tensor()));
    EXPECT_TRUE(Close(out.Read(), want, 1e-6, RoundingOf(dtype) + 2e-6));
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRmsNormTest,
                         testing::Values(NormCase{1, 1, 0}, NormCase{3, 33, 1}, NormCase{5, 2880, 0}, NormCase{70, 4099, 5},
                                         NormCase{2, 20000, 4}));

// ---------------------------------------------------------------------------------------------------------- rope and
// cache

struct RopeCase {
  int64_t heads, kv_heads, head_dim, num_dims;
  DType cache;
  DType qkv;  // kF32, or kBF16 for the activation type
  bool yarn, ring;
};
class CudaRopeTest : public CudaCaseTest<RopeCase> {};
TEST_P(CudaRopeTest, RotatesQueriesAndStoresKeysAndValues) {
  const RopeCase c = GetParam();
  const DType qkv_type = c.qkv == DType::kF32 ? DType::kF32 : act();
  RopeConfig rope{.freq_base = 150000, .num_dims = c.num_dims};
  if (c.yarn) rope.yarn_factor = 32, rope.yarn_original_context = 4096, rope.attention_factor = 1.3465735902799727;
  // Two sequences, one deep into a long context.
  Batch batch;
  batch.sequences = {{.first_row = 0, .num_rows = 37, .first_position = 5, .blocks = {3, 0}, .ring_blocks = {4, 6}},
                     {.first_row = 37, .num_rows = 3, .first_position = 131000, .blocks = {}, .ring_blocks = {1, 2}}};
  batch.sequences[1].blocks.assign(131003 / kKvBlockTokens + 1, 5);
  const int64_t rows = 40, width = (c.heads + 2 * c.kv_heads) * c.head_dim, q_width = c.heads * c.head_dim;
  KvLayer cache{.key_type = c.cache,
                .value_type = c.cache,
                .num_blocks = 7,
                .num_kv_heads = c.kv_heads,
                .head_dim = c.head_dim,
                .ring = c.ring};
  const int64_t plane = KvPlaneBytes(c.cache, cache.num_blocks, c.kv_heads, c.head_dim);
  std::vector<float> qkv = Rounded(RandomFloats(rows * width, 21, 3), qkv_type);
  std::fill_n(qkv.begin() + 3 * width + q_width, c.head_dim, 0.0f);  // a key of zeros: Q8_0 gives it the scale 0

  const DeviceRowsBuffer device_qkv(ops_, qkv_type, qkv, rows, width, /*gap=*/4), q_out(ops_, act(), rows, q_width, /*gap=*/4);
  const GuardedBytes keys(ops_, plane), values(ops_, plane);
  KvLayer device_cache = cache;
  device_cache.keys = keys.data(), device_cache.values = values.data();
  AlignedBytes want_keys(plane), want_values(plane);
  std::fill(want_keys.span().begin(), want_keys.span().end(), std::byte{0xFF});
  std::fill(want_values.span().begin(), want_values.span().end(), std::byte{0xFF});
  cache.keys = want_keys.data(), cache.values = want_values.data();
  std::vector<float> want_q(rows * q_width);

  ASSERT_OK_AND_ASSIGN(const auto device_batch, ops_->PrepareBatch(batch));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(batch));
  // In two calls, as chunks of a layer do it.
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 11}, {11, 29}}) {
    ASSERT_OK(ops_->RopeAndStore(*device_batch, first, rope, {}, device_qkv.tensor().Rows(first, count), device_cache,
                                 q_out.tensor().Rows(first, count)));
    ASSERT_OK(reference_.RopeAndStore(*host_batch, first, rope, {}, HostTensor(qkv, rows, width).Rows(first, count), cache,
                                      HostTensor(want_q, rows, q_width).Rows(first, count)));
  }
  // The sines of large angles are exact to a few 2^-24.
  EXPECT_TRUE(Close(q_out.Read(), want_q, 1e-5, RoundingOf(act()) + 1e-6));
  const auto same_plane = [&](const GuardedBytes& got, const AlignedBytes& want) {
    const std::vector<std::byte> bytes = got.Read();
    std::vector<float> got_row(c.head_dim), want_row(c.head_dim);
    for (int64_t row = 0; row < cache.num_blocks * c.kv_heads * kKvBlockTokens; ++row) {
      LoadKvRow(cache, bytes.data(), c.cache, row, got_row.data());
      LoadKvRow(cache, want.data(), c.cache, row, want_row.data());
      // Q8_0: a number may fall on the other side of a code's edge, so a step of d, where d <= 18 / 127.
      const double step = c.cache == DType::kQ8_0 ? 0.15 : 1e-5;
      ASSERT_TRUE(Close(got_row, want_row, step, 0x1p-10)) << "cache row " << row;
    }
  };
  same_plane(keys, want_keys);
  same_plane(values, want_values);
  // Values are not rotated, so their bytes are exactly those of the definition.
  EXPECT_EQ(values.Read(), std::vector<std::byte>(want_values.span().begin(), want_values.span().end()));
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRopeTest,
                         testing::Values(RopeCase{64, 8, 64, 64, DType::kF16, DType::kF32, true, false},
                                         RopeCase{64, 8, 64, 64, DType::kQ8_0, DType::kBF16, true, true},
                                         RopeCase{8, 2, 64, 64, DType::kF16, DType::kBF16, true, true},
                                         RopeCase{3, 1, 32, 32, DType::kQ8_0, DType::kF32, false, false},
                                         RopeCase{6, 3, 128, 64, DType::kF16, DType::kF32, false,
                                                  true},  // half of the dimensions stay
                                         RopeCase{2, 2, 128, 128, DType::kQ8_0, DType::kF32, true, false},
                                         RopeCase{4, 4, 64, 0, DType::kF16, DType::kF32, false, false}));  // none is rotated

TEST_F(CudaOpsTest, RopeRefusesHeadsItHasNoKernelFor) {
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch({.token_ids = {}, .sequences = {{.num_rows = 1, .blocks = {0}}}}));
  const GuardedBytes plane(ops_, KvPlaneBytes(DType::kF16, 1, 1, 96));
  const KvLayer cache{.keys = plane.data(), .values = plane.data(), .num_blocks = 1, .num_kv_heads = 1, .head_dim = 96};
  const DeviceRowsBuffer qkv(ops_, DType::kF32, 1, 3 * 96), q(ops_, act(), 1, 96);
  EXPECT_THAT(ops_->RopeAndStore(*batch, 0, {.num_dims = 96}, {}, qkv.tensor(), cache, q.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim is 96")));
  EXPECT_THAT(ops_->Attention(*batch, 0, q.tensor(), cache, PlainAttention(cache), q.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim is 96")));
}

// -----------------------------------------------------------------------------------------------------------------
// routing

struct RouteCase {
  int64_t rows, n_embd, num_experts, top_k;
  bool bias;
};
class CudaRouteTest : public CudaCaseTest<RouteCase> {};
// Inputs and weights are small multiples of powers of two: every sum is exact, so ids must agree, equal logits
// included.
TEST_P(CudaRouteTest, ChoosesTheExpertsOfTheReference) {
  const auto [rows, n_embd, num_experts, top_k, has_bias] = GetParam();
  RandomBits random(31);
  std::vector<float> in(rows * n_embd), weight(num_experts * n_embd), bias(num_experts);
  for (float& value : in) value = static_cast<float>(random.Below(9) - 4) / 4;
  for (float& value : weight) value = static_cast<float>(random.Below(9) - 4) / 32;
  for (float& value : bias) value = static_cast<float>(random.Below(5) - 2) / 2;
  const DeviceRowsBuffer device_in(ops_, act(), in, rows, n_embd, /*gap=*/4);
  const GuardedBytes device_weight(ops_, BytesOf(weight)), device_bias(ops_, BytesOf(bias));
  const GuardedBytes experts(ops_, rows * top_k * 4), weights(ops_, rows * top_k * 4);
  std::vector<int32_t> want_experts(rows * top_k);
  std::vector<float> want_weights(rows * top_k);
  ASSERT_OK(reference_.Route(HostTensor(in, rows, n_embd), {.weight = weight.data(), .bias = has_bias ? bias.data() : nullptr},
                             PlainRouter(num_experts, top_k), want_experts.data(), want_weights.data()));
  ASSERT_OK(ops_->Route(device_in.tensor(),
                        {.weight = device_weight.as<float>(), .bias = has_bias ? device_bias.as<float>() : nullptr},
                        PlainRouter(num_experts, top_k), experts.as<int32_t>(), weights.as<float>()));
  EXPECT_EQ(experts.ReadAs<int32_t>(), want_experts);
  EXPECT_TRUE(Close(weights.ReadAs<float>(), want_weights, 1e-6, 1e-5));
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRouteTest,
                         testing::Values(RouteCase{1, 2880, 128, 4, true}, RouteCase{9, 2880, 32, 4, true},
                                         RouteCase{65, 2880, 128, 4, false}, RouteCase{5000, 256, 32, 4, true},
                                         RouteCase{3, 36, 1, 1, true}, RouteCase{70, 37, 5, 2, true},
                                         RouteCase{2, 37, 5, 2, true}, RouteCase{130, 160, 60, 6, true},
                                         RouteCase{7, 512, 1024, 8, false}, RouteCase{2, 64, 33, 33, true}));

TEST_F(CudaOpsTest, ARowIsRoutedTheSameAloneAndAmongOthersAndAsTheReferenceDoes) {
  constexpr int64_t kRows = 300, kEmbd = 2880, kTop = 4;
  for (const int64_t num_experts : {32, 128}) {
    std::vector<float> in = Rounded(RandomFloats(kRows * kEmbd, 5), act()), weight = RandomFloats(num_experts * kEmbd, 6, 0.02f);
    const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kEmbd);
    const GuardedBytes device_weight(ops_, BytesOf(weight));
    const GuardedBytes experts(ops_, kRows * kTop * 4), weights(ops_, kRows * kTop * 4), one(ops_, kTop * 4),
        one_weight(ops_, kTop * 4);
    ASSERT_OK(ops_->Route(device_in.tensor(), {.weight = device_weight.as<float>(), .bias = nullptr},
                          PlainRouter(num_experts, kTop), experts.as<int32_t>(), weights.as<float>()));
    const std::vector<float> all = weights.ReadAs<float>();
    for (const int64_t row : {0, 77, 299}) {
      ASSERT_OK(ops_->Route(device_in.tensor().Rows(row, 1), {.weight = device_weight.as<float>(), .bias = nullptr},
                            PlainRouter(num_experts, kTop), one.as<int32_t>(), one_weight.as<float>()));
      EXPECT_EQ(one_weight.ReadAs<float>(), std::vector<float>(all.begin() + row * kTop, all.begin() + (row + 1) * kTop));
    }
    std::vector<int32_t> want_experts(kRows * kTop);
    std::vector<float> want(kRows * kTop);
    ASSERT_OK(reference_.Route(HostTensor(in, kRows, kEmbd), {.weight = weight.data(), .bias = nullptr},
                               PlainRouter(num_experts, kTop), want_experts.data(), want.data()));
    EXPECT_EQ(experts.ReadAs<int32_t>(), want_experts);
    EXPECT_TRUE(Close(all, want, 1e-5));  // logits of order 1, off by less than 1e-5: F32, not BF16
  }
}

TEST_F(CudaOpsTest, NaNLogitsStillRouteToExperts) {
  const std::vector<float> in(32, std::numeric_limits<float>::quiet_NaN());
  const DeviceRowsBuffer device_in(ops_, act(), in, 1, 32);
  const GuardedBytes weight(ops_, BytesOf(std::vector<float>(40 * 32, 1.0f))), experts(ops_, 3 * 4), weights(ops_, 3 * 4);
  ASSERT_OK(ops_->Route(device_in.tensor(), {.weight = weight.as<float>(), .bias = nullptr}, PlainRouter(40, 3),
                        experts.as<int32_t>(), weights.as<float>()));
  EXPECT_EQ(experts.ReadAs<int32_t>(), (std::vector<int32_t>{0, 1, 2}));
}

struct GroupCase {
  int64_t rows, top_k, num_experts;
  int skew;  // 0: uniform; 1: most go to one expert; 2: all do
};
class CudaGroupTest : public CudaCaseTest<GroupCase> {};
TEST_P(CudaGroupTest, GroupsInOrder) {
  const auto [rows, top_k, num_experts, skew] = GetParam();
  RandomBits random(17);
  std::vector<int32_t> experts(rows * top_k);
  for (int32_t& expert : experts) {
    expert = static_cast<int32_t>(skew == 2 || (skew == 1 && random.Below(10) > 0) ? num_experts - 1 : random.Below(num_experts));
  }
  const GuardedBytes device(ops_, BytesOf(experts));
  const GuardedBytes offsets(ops_, (num_experts + 1) * 4), entry_rows(ops_, rows * top_k * 4), entry_outs(ops_, rows * top_k * 4);
  std::vector<int32_t> want_offsets(num_experts + 1), want_rows(rows * top_k), want_outs(rows * top_k);
  ASSERT_OK(reference_.GroupByExpert(experts.data(), rows, top_k, num_experts, want_offsets.data(), want_rows.data(),
                                     want_outs.data()));
  ASSERT_OK(ops_->GroupByExpert(device.as<int32_t>(), rows, top_k, num_experts, offsets.as<int32_t>(), entry_rows.as<int32_t>(),
                                entry_outs.as<int32_t>()));
  EXPECT_EQ(offsets.ReadAs<int32_t>(), want_offsets);
  EXPECT_EQ(entry_rows.ReadAs<int32_t>(), want_rows);
  EXPECT_EQ(entry_outs.ReadAs<int32_t>(), want_outs);
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaGroupTest,
                         testing::Values(GroupCase{1, 1, 1, 0}, GroupCase{1, 4, 128, 0}, GroupCase{5, 4, 33, 1},
                                         GroupCase{128, 4, 32, 0}, GroupCase{129, 4, 32, 0}, GroupCase{4096, 4, 128, 1},
                                         GroupCase{20001, 8, 1024, 0}, GroupCase{3000, 4, 128, 2}, GroupCase{3, 2, 1024, 0}));

TEST_F(CudaOpsTest, GroupLeavesOutIdsThatAreNoExpert) {
  const std::vector<int32_t> experts = {1, -1232513024, 0, 2, 1, 7};
  const GuardedBytes device(ops_, BytesOf(experts)), offsets(ops_, 4 * 4), rows(ops_, 6 * 4), outs(ops_, 6 * 4);
  ASSERT_OK(ops_->GroupByExpert(device.as<int32_t>(), 3, 2, 3, offsets.as<int32_t>(), rows.as<int32_t>(), outs.as<int32_t>()));
  EXPECT_EQ(offsets.ReadAs<int32_t>(), (std::vector<int32_t>{0, 1, 3, 4}));
  EXPECT_EQ(outs.ReadAs<int32_t>(), (std::vector<int32_t>{2, 0, 4, 3, -1, -1}));
}

// ------------------------------------------------------------------------------------------------------- products and
// rows

TEST_F(CudaOpsTest, MatMulMatchesReference) {
  constexpr int64_t kRows = 19, kIn = 96, kOut = 83;
  for (const DType dtype : {DType::kQ8_0, DType::kMXFP4, DType::kBF16}) {
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, kOut, kIn, 9, 0.1f);
    const GuardedBytes device_weight(ops_, weight.memory.span());
    std::vector<float> in = Rounded(RandomFloats(kRows * kIn, 8), act()), bias = RandomFloats(kOut, 10),
                       want = RandomFloats(kRows * kOut, 12);
    const GuardedBytes device_bias(ops_, BytesOf(bias));
    const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kIn), out(ops_, DType::kF32, want, kRows, kOut, /*gap=*/5);
    ASSERT_OK(reference_.MatMul(HostTensor(in, kRows, kIn), weight.matrix, bias.data(), HostTensor(want, kRows, kOut), true));
    ASSERT_OK(ops_->MatMul(device_in.tensor(), {weight.matrix.layout, device_weight.data()}, device_bias.as<float>(),
                           out.tensor(), true));
    EXPECT_TRUE(Close(out.Read(), want, 0.02, 0.01)) << NameOf(dtype);
  }
}

TEST_F(CudaOpsTest, ExpertMlpScatterAndCombineMatchReference) {
  constexpr int64_t kRows = 41, kEmbd = 96, kFf = 160, kExperts = 5, kTop = 2;
  ASSERT_OK_AND_ASSIGN(const ExpertLayout layout,
                       ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, kEmbd, kFf, true));
  std::vector<AlignedBytes> records;
  std::vector<std::unique_ptr<GuardedBytes>> device_records;
  for (int64_t e = 0; e < kExperts; ++e) {
    records.push_back(RandomExpertRecord(layout, 100 + e));
    device_records.push_back(std::make_unique<GuardedBytes>(ops_, records.back().span()));
  }
  std::vector<float> in = Rounded(RandomFloats(kRows * kEmbd, 40), act()), want(kRows * kTop * kEmbd),
                     want_x = RandomFloats(kRows * kEmbd, 41);
  std::vector<int32_t> experts(kRows * kTop);
  for (int64_t i = 0; i < kRows; ++i)
    experts[2 * i] = i % kExperts,
                experts[2 * i + 1] = (i * i + i + 1) % kExperts == i % kExperts ? (i + 1) % kExperts : (i * i + i + 1) % kExperts;
  std::vector<float> weights(kRows * kTop);
  for (int64_t i = 0; i < kRows; ++i) weights[2 * i] = 0.7f, weights[2 * i + 1] = 0.3f;
  std::vector<int32_t> offsets(kExperts + 1), rows(kRows * kTop), outs(kRows * kTop);
  ASSERT_OK(reference_.GroupByExpert(experts.data(), kRows, kTop, kExperts, offsets.data(), rows.data(), outs.data()));

  const DType type = ops_->contribution_dtype();
  const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kEmbd), contributions(ops_, type, kRows * kTop, kEmbd),
      x(ops_, DType::kF32, want_x, kRows, kEmbd);
  const GuardedBytes device_offsets(ops_, BytesOf(offsets)), device_rows(ops_, BytesOf(rows)), device_outs(ops_, BytesOf(outs)),
      device_weights(ops_, BytesOf(weights));
  const ExpertGroups host_groups{kExperts, kRows * kTop, offsets.data(), rows.data(), outs.data()};
  const ExpertGroups groups{kExperts, kRows * kTop, device_offsets.as<int32_t>(), device_rows.as<int32_t>(),
                            device_outs.as<int32_t>()};
  std::vector<ExpertUse> host_uses, uses;
  for (int32_t e = 0; e < kExperts; ++e) {
    host_uses.push_back({records[e].data(), e, offsets[e + 1] - offsets[e]});
    uses.push_back({device_records[e]->data(), e, offsets[e + 1] - offsets[e]});
  }
  ASSERT_OK(reference_.ExpertMlp(layout, host_uses, host_groups, {}, HostTensor(in, kRows, kEmbd),
                                 HostTensor(want, kRows * kTop, kEmbd)));
  // The last expert is computed by the host: its rows come over the link.
  ASSERT_OK(ops_->ExpertMlp(layout, std::span(uses).first(kExperts - 1), groups, {}, device_in.tensor(), contributions.tensor()));
  const std::vector<int32_t> host_outs(outs.begin() + offsets[kExperts - 1], outs.end());
  std::vector<float> host_rows;
  for (const int32_t out : host_outs)
    host_rows.insert(host_rows.end(), want.begin() + out * kEmbd, want.begin() + (out + 1) * kEmbd);
  ASSERT_OK(ops_->ScatterContributions(host_rows, host_outs, contributions.tensor()));
  std::fill(host_rows.begin(), host_rows.end(), 0.0f);  // free on return
  EXPECT_LT((RelativeRmsError<float, float>(contributions.Read(), want)), 0.01);
  ASSERT_OK(ops_->Combine(contributions.tensor(), device_weights.as<float>(), kTop, x.tensor()));
  ASSERT_OK(reference_.Combine(HostTensor(want, kRows * kTop, kEmbd), weights.data(), kTop, HostTensor(want_x, kRows, kEmbd)));
  EXPECT_LT((RelativeRmsError<float, float>(x.Read(), want_x)), 0.005);
}

TEST_F(CudaOpsTest, ScatterRoundsEveryRowThatTheHostHandsOver) {
  const DType type = ops_->contribution_dtype();
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 32}, {3, 37}, {1500, 2880}}) {  // the last: five staging buffers
    const std::vector<float> values = RandomFloats(rows * cols, 50, 100);
    std::vector<int32_t> outs(rows);
    for (int64_t i = 0; i < rows; ++i) outs[i] = static_cast<int32_t>(2 * (rows - 1 - i) + 1);
    const DeviceRowsBuffer contributions(ops_, type, 2 * rows, cols, /*gap=*/3);
    ASSERT_OK(ops_->ScatterContributions(values, outs, contributions.tensor()));
    const std::vector<float> got = contributions.Read();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t col = 0; col < cols; ++col) {
        ASSERT_EQ(got[outs[i] * cols + col], Rounded(values[i * cols + col], type)) << i << ", " << col;
        ASSERT_TRUE(std::isnan(got[(outs[i] - 1) * cols + col]));  // rows that were not named keep their poison
      }
    }
  }
}

TEST_F(CudaOpsTest, ScatterReadsPinnedRowsWhereTheyLie) {
  constexpr int64_t kRows = 5, kCols = 2880;
  const DType type = ops_->contribution_dtype();
  AlignedBytes memory(2 * kRows * kCols * sizeof(float));
  const std::span<float> all(reinterpret_cast<float*>(memory.span().data()), 2 * kRows * kCols);
  const std::vector<float> values = RandomFloats(static_cast<int64_t>(all.size()), 51);
  std::copy(values.begin(), values.end(), all.begin());
  const std::span<const std::byte> first_half = memory.span().first(kRows * kCols * sizeof(float));
  ASSERT_OK(ops_->PinHost(first_half, /*read_only=*/false));
  const std::vector<int32_t> outs = {4, 0, 3, 1, 2};
  for (const int64_t first :
       {int64_t{0}, kRows * kCols, kRows * kCols / 2}) {  // inside, outside, and across the end of what is pinned
    const std::span<const float> rows = all.subspan(first, kRows * kCols);
    const DeviceRowsBuffer contributions(ops_, type, kRows, kCols);
    ASSERT_OK(ops_->ScatterContributionsAsync(rows, outs, contributions.tensor()));
    const std::vector<float> got = contributions.Read();
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      ASSERT_EQ(got[outs[i / kCols] * kCols + i % kCols], Rounded(rows[i], type)) << first << ": " << i;
    }
  }
  EXPECT_THAT(ops_->ScatterContributionsAsync(all.first(kRows * kCols), std::vector<int32_t>{0, 1, 2, 3, 5},
                                              DeviceRowsBuffer(ops_, type, kRows, kCols).tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ops_->UnpinHost(first_half);
}

TEST_F(CudaOpsTest, CombineAddsTheRanksInOrder) {
  const DType type = ops_->contribution_dtype();
  for (const auto& [rows, cols, top_k] : {std::tuple<int64_t, int64_t, int64_t>{1, 2880, 4}, {33, 70, 1}, {5, 513, 8}}) {
    std::vector<float> contributions = Rounded(RandomFloats(rows * top_k * cols, 60), type),
                       weights = RandomFloats(rows * top_k, 61), x = RandomFloats(rows * cols, 62);
    const DeviceRowsBuffer device(ops_, type, contributions, rows * top_k, cols, 2),
        device_x(ops_, DType::kF32, x, rows, cols, 1);
    const GuardedBytes device_weights(ops_, BytesOf(weights));
    ASSERT_OK(ops_->Combine(device.tensor(), device_weights.as<float>(), top_k, device_x.tensor()));
    std::vector<float> want = x;
    for (int64_t i = 0; i < rows * cols; ++i) {
      float sum = 0;
      for (int64_t r = 0; r < top_k; ++r) {
        sum = std::fmaf(weights[i / cols * top_k + r], contributions[(i / cols * top_k + r) * cols + i % cols], sum);
      }
      want[i] += sum;
    }
    EXPECT_EQ(device_x.Read(), want);
  }
}

TEST_F(CudaOpsTest, GatherCopiesRowsOfEveryTypeAndWidth) {
  for (const DType dtype : {DType::kF32, act()}) {
    for (const auto& [cols, gap] : {std::pair<int64_t, int64_t>{1, 0}, {7, 2}, {64, 0}, {2880, 8}}) {
      const std::vector<float> values = Rounded(RandomFloats(11 * cols, 70), dtype);
      const std::vector<int32_t> rows = {10, 0, 3, 3, 7};
      const DeviceRowsBuffer in(ops_, dtype, values, 11, cols, gap), out(ops_, dtype, 5, cols, gap);
      ASSERT_OK(ops_->GatherRows(in.tensor(), rows, out.tensor()));
      std::vector<float> want;
      for (const int32_t row : rows) want.insert(want.end(), values.begin() + row * cols, values.begin() + (row + 1) * cols);
      EXPECT_EQ(out.Read(), want);
      EXPECT_THAT(ops_->GatherRows(in.tensor(), std::vector<int32_t>{0, 1, 2, 3, 11}, out.tensor()),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host_rows[4] is 11")));
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------
// logits

struct LogitsCase {
  int64_t rows, vocab;
  std::vector<int32_t> top_n;  // of the rows, in turn
};
class CudaLogitsTest : public CudaCaseTest<LogitsCase> {};
TEST_P(CudaLogitsTest, ReadsWhatTheReferenceReads) {
  const auto& [rows, vocab, top_n] = GetParam();
  std::vector<float> logits = RandomFloats(rows * vocab, 80, 4);
  for (float& logit : logits) logit = std::round(logit * 16) / 16;  // many are equal: ties go to the lower id
  if (vocab > 100) {
    logits[5] = -std::numeric_limits<float>::infinity();
    std::fill(logits.begin() + vocab / 2, logits.begin() + vocab,
              -std::numeric_limits<float>::infinity());  // whole segments
    logits[7] = -0.0f, logits[8] = 0.0f;
  }
  std::vector<LogitsRequest> requests;
  for (int64_t row = 0; row < rows; ++row) {
    requests.push_back({top_n[row % top_n.size()], static_cast<int32_t>(row % 2 == 0 ? (row * 997) % vocab : -1)});
  }
  const DeviceRowsBuffer device(ops_, DType::kF32, logits, rows, vocab, /*gap=*/1);
  ASSERT_OK_AND_ASSIGN(const auto got, ops_->ReadLogits(device.tensor(), requests));
  ASSERT_OK_AND_ASSIGN(const auto want, reference_.ReadLogits(HostTensor(logits, rows, vocab), requests));
  ASSERT_EQ(got.size(), want.size());
  for (int64_t row = 0; row < rows; ++row) {
    EXPECT_NEAR(got[row].log_sum_exp, want[row].log_sum_exp, 2e-5) << row;
    EXPECT_EQ(got[row].target_logit, want[row].target_logit) << row;
    EXPECT_EQ(got[row].ids, want[row].ids) << row;
    EXPECT_EQ(got[row].logits, want[row].logits) << row;
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaLogitsTest,
                         testing::Values(LogitsCase{1, 1, {1}}, LogitsCase{3, 7, {0, 3, 7}}, LogitsCase{2, 8192, {20, 1}},
                                         LogitsCase{3, 8193, {2048, 40, 0}}, LogitsCase{4, 201088, {64, 0, 1, 1000}},
                                         LogitsCase{2, 201088, {5000, 201088}}, LogitsCase{40, 300, {3}}));

TEST_F(CudaOpsTest, NaNLogitsComeAfterAllNumbers) {
  std::vector<float> logits(10000, -3.0f);
  for (int64_t i = 0; i < 10000; i += 3) logits[i] = std::numeric_limits<float>::quiet_NaN();
  logits[9998] = 5;
  const DeviceRowsBuffer device(ops_, DType::kF32, logits, 1, 10000);
  ASSERT_OK_AND_ASSIGN(const auto got, ops_->ReadLogits(device.tensor(), std::vector<LogitsRequest>{{3, -1}}));
  EXPECT_EQ(got[0].ids, (std::vector<int32_t>{9998, 1, 2}));
  EXPECT_TRUE(std::isnan(got[0].log_sum_exp));
}

TEST_F(CudaOpsTest, NothingIsTouchedWithoutRows) {
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch({}));
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  const Tensor x(nullptr, DType::kF32, 0, 32), in(nullptr, act(), 0, 32),
      contributions(nullptr, ops_->contribution_dtype(), 0, 32);
  const float weight = 1;
  EXPECT_OK(ops_->Embed(*batch, 0, table.matrix, x));
  EXPECT_OK(ops_->RmsNorm(x, &weight, 1e-5, in));
  EXPECT_OK(ops_->MatMul(in, table.matrix, nullptr, Tensor(nullptr, act(), 0, 16), false));
  EXPECT_OK(ops_->Route(in, {.weight = &weight, .bias = nullptr}, PlainRouter(4, 2), nullptr, nullptr));
  EXPECT_OK(ops_->GroupByExpert(nullptr, 0, 2, 4, nullptr, nullptr, nullptr));
  EXPECT_OK(ops_->ScatterContributions({}, {}, contributions));
  EXPECT_OK(ops_->Combine(contributions, nullptr, 2, x));
  EXPECT_OK(ops_->GatherRows(x, {}, x));
  EXPECT_OK(ops_->ReadLogits(x, {}));
  EXPECT_OK(ops_->Upload(nullptr, {}));
  EXPECT_OK(ops_->Download({}, nullptr));
}

}  // namespace
}  // namespace ferry
