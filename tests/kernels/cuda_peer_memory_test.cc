// Device memory that two processes share. The second process is this program again, with the key in its environment.

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "absl/strings/escaping.h"
#include "kernels/peer_memory.h"
#include "tests/kernels/cuda_rig.h"

namespace ferry {
namespace {

constexpr char kKey[] = "FERRY_TEST_PEER_KEY";
constexpr int64_t kBytes = 3'000'004;  // no whole blocks of anything

std::vector<uint8_t> Pattern(int seed) {
  std::vector<uint8_t> bytes(kBytes);
  for (int64_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<uint8_t>((i * 31 + i / 4096 + seed) % 251);
  return bytes;
}

std::vector<uint8_t> ReadThrough(Ops* ops, std::span<const std::byte> shared) {
  const GuardedBytes here(ops, kBytes);
  EXPECT_OK(ops->UploadAsync(here.data(), shared));
  return here.ReadAs<uint8_t>();
}

void WriteThrough(Ops* ops, std::span<std::byte> shared, const std::vector<uint8_t>& values) {
  const GuardedBytes here(ops, BytesOf(values));
  EXPECT_OK(ops->DownloadAsync(shared, here.data()));
  EXPECT_OK(ops->Synchronize(Deadline::In(absl::Seconds(20))));
}

// The exit status of this program, running nothing but `test` with the key of some memory.
int RunOther(const std::string& test, const std::string& key) {
  ::setenv(kKey, absl::BytesToHexString(key).c_str(), 1);
  std::string program = "/proc/self/exe", filter = "--gtest_filter=" + test, disabled = "--gtest_also_run_disabled_tests";
  char* const arguments[] = {program.data(), filter.data(), disabled.data(), nullptr};
  pid_t child = 0;
  if (posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environ) != 0) return -1;
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

class CudaPeerMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU";
    ops_ = CreateCudaOps({.kind = "cuda"}).value();
    peers_ = PeerMemoriesOf(*ops_);
    ASSERT_NE(peers_, nullptr);
  }
  std::unique_ptr<Ops> ops_;
  PeerMemories* peers_ = nullptr;
};

TEST_F(CudaPeerMemory, AnotherProcessReadsAndWritesIt) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<PeerMemory> memory, peers_->Share(kBytes));
  ASSERT_EQ(memory->key().size(), PeerMemory::kKeyBytes);
  ASSERT_EQ(memory->bytes().size(), static_cast<size_t>(kBytes));
  WriteThrough(ops_.get(), memory->bytes(), Pattern(1));
  EXPECT_EQ(ReadThrough(ops_.get(), memory->bytes()), Pattern(1));
  EXPECT_EQ(RunOther("PeerProcess.DISABLED_MapsTheMemory", memory->key()), 0);
  EXPECT_EQ(ReadThrough(ops_.get(), memory->bytes()), Pattern(2));
}

TEST_F(CudaPeerMemory, ContributionsAreScatteredFromIt) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<PeerMemory> memory, peers_->Share(kBytes));
  constexpr int64_t kRows = 5, kCols = 72;
  const DType type = ops_->contribution_dtype();
  std::vector<float> values(kRows * kCols);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 200);
  const GuardedBytes from(ops_.get(), Encoded(values, type));
  const auto bytes = memory->bytes().subspan(512, from.Read().size());
  ASSERT_OK(ops_->DownloadAsync(bytes, from.data()));
  const DeviceRowsBuffer out(ops_.get(), type, std::vector<float>(9 * kCols, -1), 9, kCols);
  const std::vector<int32_t> outs = {8, 0, 3, 4, 7};
  ASSERT_OK(ops_->ScatterComputedAsync(bytes, outs, out.tensor()));
  const std::vector<float> got = out.Read();
  for (int64_t row = 0; row < kRows; ++row) {
    EXPECT_TRUE(std::equal(values.begin() + row * kCols, values.begin() + (row + 1) * kCols, got.begin() + outs[row] * kCols));
  }
}

TEST_F(CudaPeerMemory, NothingElseMapsIt) {
  EXPECT_THAT(peers_->Map("short", 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(peers_->Map(std::string(PeerMemory::kKeyBytes, 'x'), 1), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(peers_->Share(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(ops_->Allocate(1).status()) << "the device works on";
}

// In the other process, on the last GPU, so from device to device where there are several.
TEST(PeerProcess, DISABLED_MapsTheMemory) {
  const char* const hex = std::getenv(kKey);
  if (hex == nullptr) GTEST_SKIP() << "started by another test";
  const std::unique_ptr<Ops> ops = CreateCudaOps({.kind = "cuda", .device = NumCudaDevices() - 1}).value();
  const std::string key = absl::HexStringToBytes(hex);
  EXPECT_THAT(PeerMemoriesOf(*ops)->Map(key, int64_t{64} << 20), StatusIs(absl::StatusCode::kInvalidArgument)) << "it is smaller";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<PeerMemory> memory, PeerMemoriesOf(*ops)->Map(key, kBytes));
  EXPECT_TRUE(memory->key().empty());
  EXPECT_EQ(ReadThrough(ops.get(), memory->bytes()), Pattern(1));
  WriteThrough(ops.get(), memory->bytes(), Pattern(2));
}

}  // namespace
}  // namespace ferry
