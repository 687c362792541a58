#include "coordinator/cluster/dense_tensor_stream.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/model/model_tensors.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"
#include "xxhash.h"

namespace ferry {
namespace {

class DenseTensorStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    file_ = std::make_unique<GgufFile>(std::move(file));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(*file_));
  }
  std::unique_ptr<GgufFile> file_;
  // All of the model's chunks, as a worker asks for them.
  absl::Status SendAll(const GgufFile& file) {
    absl::StatusOr<DenseTensorStream> stream = DenseTensorStream::Create(&file, &sent_, config_, 0, config_.num_layers);
    RETURN_IF_ERROR(stream.status());
    internal::v1::TensorChunk chunk;
    absl::StatusOr<bool> more = true;
    while (more.ok() && *more) more = stream->Next(&chunk);
    return more.status();
  }
  ModelConfig config_;
  SentChunks sent_;
};

TEST_F(DenseTensorStreamTest, SendsEveryTensorOfTheRangeInOrderAndWhole) {
  for (const auto& [first, end] : {std::pair<int64_t, int64_t>(0, 2), {2, 6}, {0, 6}}) {
    ASSERT_OK_AND_ASSIGN(DenseTensorStream stream, DenseTensorStream::Create(file_.get(), &sent_, config_, first, end));
    internal::v1::TensorChunk chunk;
    for (const DenseTensor& tensor : DenseTensorsOf(config_, first, end)) {
      ASSERT_OK_AND_ASSIGN(const TensorInfo* const info, FindDense(config_, *file_, tensor));
      std::string bytes;
      for (int64_t row = 0; row < tensor.rows; row += static_cast<int64_t>(chunk.num_rows())) {
        ASSERT_TRUE(stream.Next(&chunk).value()) << tensor.name;
        EXPECT_EQ(chunk.name(), tensor.name);
        EXPECT_EQ(chunk.dtype(), static_cast<uint32_t>(info->dtype));
        EXPECT_EQ(chunk.rows(), static_cast<uint64_t>(tensor.rows));
        EXPECT_EQ(chunk.cols(), static_cast<uint64_t>(tensor.cols));
        ASSERT_EQ(chunk.first_row(), static_cast<uint64_t>(row));
        ASSERT_GT(chunk.num_rows(), 0u);
        EXPECT_LE(chunk.data().size(), static_cast<size_t>(kTensorChunkBytes));
        EXPECT_EQ(chunk.xxh3(), XXH3_64bits(chunk.data().data(), chunk.data().size()));
        bytes += chunk.data();
      }
      ASSERT_EQ(bytes.size(), info->bytes()) << tensor.name;
      EXPECT_EQ(std::memcmp(bytes.data(), info->data.data(), bytes.size()), 0) << tensor.name;
    }
    EXPECT_FALSE(stream.Next(&chunk).value());
  }
}

// What a worker gets that comes back after somebody wrote into the file.
class ChangedModelTest : public DenseTensorStreamTest {
 protected:
  void SetUp() override {
    DenseTensorStreamTest::SetUp();
    std::filesystem::copy_file(SourcePath("models/demo-moe.gguf"), path_);
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(path_));
    copy_ = std::make_unique<GgufFile>(std::move(file));
    ASSERT_OK(SendAll(*copy_));
  }
  void TearDown() override { std::filesystem::remove(path_); }
  void ExpectRefused() {
    EXPECT_THAT(SendAll(*copy_),
                StatusIs(absl::StatusCode::kFailedPrecondition, ::testing::HasSubstr("changed after it was opened")));
  }
  // Turns a byte of a dense tensor over, in the file.
  void Damage() {
    const uint64_t at = copy_->FindTensor("blk.0.attn_q.weight")->file_offset;
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte);
  }
  const std::string path_ = ::testing::TempDir() + "/changed-" + std::to_string(getpid()) + ".gguf";
  std::unique_ptr<GgufFile> copy_;
};

TEST_F(ChangedModelTest, IsRefusedWhenItWasWrittenInPlace) {
  Damage();
  ExpectRefused();
}

TEST_F(ChangedModelTest, IsRefusedWhenItsDateWasPutBack) {
  const auto date = std::filesystem::last_write_time(path_);
  Damage();
  std::filesystem::last_write_time(path_, date);
  ExpectRefused();
}

TEST_F(ChangedModelTest, IsRefusedWhenItWasCutAndDoesNotEndTheProcess) {
  std::filesystem::resize_file(path_, 4096);
  ExpectRefused();
}

TEST_F(ChangedModelTest, IsSentWhenItWasOnlyRenamedOrDeleted) {
  std::filesystem::rename(path_, path_ + ".old");
  EXPECT_OK(SendAll(*copy_));
  std::filesystem::remove(path_ + ".old");
  EXPECT_OK(SendAll(*copy_));
}

}  // namespace
}  // namespace ferry
