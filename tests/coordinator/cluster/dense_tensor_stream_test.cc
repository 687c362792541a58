#include "coordinator/cluster/dense_tensor_stream.h"

#include <cstring>
#include <map>

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
  ModelConfig config_;
};

TEST_F(DenseTensorStreamTest, SendsEveryTensorOfTheRangeInOrderAndWhole) {
  for (const auto& [first, end] : {std::pair<int64_t, int64_t>(0, 2), {2, 6}, {0, 6}}) {
    ASSERT_OK_AND_ASSIGN(DenseTensorStream stream, DenseTensorStream::Create(file_.get(), config_, first, end));
    internal::v1::TensorChunk chunk;
    for (const DenseTensor& tensor : DenseTensorsOf(config_, first, end)) {
      ASSERT_OK_AND_ASSIGN(const TensorInfo* const info, FindDense(config_, *file_, tensor));
      std::string bytes;
      for (int64_t row = 0; row < tensor.rows; row += static_cast<int64_t>(chunk.num_rows())) {
        ASSERT_TRUE(stream.Next(&chunk)) << tensor.name;
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
    EXPECT_FALSE(stream.Next(&chunk));
  }
}

}  // namespace
}  // namespace ferry
