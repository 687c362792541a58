#include "coordinator/experts/expert_store.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>

#include "common/model/decode_rows.h"
#include "common/model/model_tensors.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

const std::string kDemoModel = SourcePath("models/demo-moe.gguf");

class ExpertStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(kDemoModel));
    file_ = std::make_unique<GgufFile>(std::move(file));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(*file_));
    ASSERT_OK_AND_ASSIGN(pool_, ThreadPool::Create({.num_threads = 2, .pin = false}));
    ASSERT_OK_AND_ASSIGN(store_,
                         ExpertStore::Load(*file_, config_, *pool_, [this](const LoadProgress& p) { seen_.push_back(p); }));
  }
  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<ExpertStore> store_;
  std::vector<LoadProgress> seen_;
};

TEST_F(ExpertStoreTest, HoldsTheValuesOfTheFile) {
  for (const int64_t layer : {int64_t{0}, config_.num_layers - 1}) {
    ASSERT_OK_AND_ASSIGN(const ExpertTensors tensors, ExpertTensorsOf(config_, *file_, layer));
    const ExpertLayout& layout = store_->layout().layer(layer);
    for (const int64_t expert : {int64_t{0}, int64_t{17}, config_.router.num_experts - 1}) {
      ASSERT_OK_AND_ASSIGN(const std::span<const std::byte> record, store_->Record(layer, expert));
      const TiledMatrix down = layout.Down(record.data());
      std::vector<float> values(down.layout.rows * down.layout.cols);
      ASSERT_OK(DecodeRows(tensors.down.dtype(), tensors.down.cols, tensors.down.Of(expert), values));
      for (int64_t row = 0; row < down.layout.rows; row += 37) {
        for (int64_t col = 0; col < down.layout.cols; ++col) {
          ASSERT_EQ(TiledValue(down, row, col), values[row * down.layout.cols + col]) << "row " << row << " col " << col;
        }
      }
      const float* bias = layout.UpBias(record.data());
      ASSERT_EQ(std::memcmp(bias, tensors.up_bias.Of(expert).data(), config_.expert.n_ff * sizeof(float)), 0);
    }
  }
}

TEST_F(ExpertStoreTest, ReportsProgressToTheEnd) {
  ASSERT_FALSE(seen_.empty());
  EXPECT_EQ(seen_.back().bytes_done, seen_.back().bytes_total);
  EXPECT_EQ(seen_.back().bytes_total, store_->layout().bytes());
}

TEST_F(ExpertStoreTest, CannotBeWrittenByAPeer) {
  const int64_t bytes = store_->layout().bytes();
  EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, store_->arena().fd(), 0), MAP_FAILED);
  ASSERT_OK_AND_ASSIGN(const ShmArena mapped, ShmArena::MapReadOnly(dup(store_->arena().fd()), bytes));
  EXPECT_EQ(std::memcmp(mapped.bytes().data(), store_->arena().bytes().data(), bytes), 0);
}

TEST_F(ExpertStoreTest, RefusesAnExpertThatIsNotThere) {
  EXPECT_THAT(store_->Record(0, config_.router.num_experts), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expert")));
  EXPECT_THAT(store_->Record(-1, 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
}

}  // namespace
}  // namespace ferry
