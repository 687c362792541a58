#include "coordinator/experts/held_experts.h"

#include "coordinator/experts/expert_store.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

class HeldExpertsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    file_ = std::make_unique<GgufFile>(std::move(file));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(*file_));
    ASSERT_OK_AND_ASSIGN(layout_, ArenaLayoutOf(*file_, config_));
  }
  int64_t num_experts() const { return layout_.num_experts(); }
  // Of some experts in every layer.
  int64_t BytesOfEach(int64_t count) const { return layout_.bytes() / num_experts() * count; }
  const std::vector<bool>& FirstLayer(const HeldExperts& held) const { return *held[layout_.FirstWithExperts()]; }

  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
  ArenaLayout layout_;
};

TEST_F(HeldExpertsTest, HoldsAsManyAsFit) {
  for (int64_t count = 0; count <= num_experts(); ++count) {
    const HeldExperts held = ChooseHeld(layout_, BytesOfEach(count) + 100, 0);
    EXPECT_EQ(RecordsIn(held), count * layout_.num_records() / num_experts());
    EXPECT_LE(BytesOf(layout_, held), BytesOfEach(count) + 100);
  }
  EXPECT_EQ(RecordsIn(ChooseHeld(layout_, INT64_MAX, 3)), layout_.num_records());
}

TEST_F(HeldExpertsTest, TwoHostsWithRoomForHalfHoldEverything) {
  const HeldExperts first = ChooseHeld(layout_, BytesOfEach(num_experts() / 2), 0);
  const HeldExperts second = ChooseHeld(layout_, BytesOfEach(num_experts() / 2), 1);
  for (int64_t expert = 0; expert < num_experts(); ++expert) EXPECT_NE(FirstLayer(first)[expert], FirstLayer(second)[expert]);
}

TEST_F(HeldExpertsTest, AStoreOfSomeHasTheirRecordsAndNoOthers) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = 1, .pin = false}));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ExpertStore> all,
                       ExpertStore::Load(*file_, config_, *pool, [](const LoadProgress&) {}));
  const HeldExperts held = ChooseHeld(layout_, BytesOfEach(num_experts() / 3), 1);
  int64_t reported = 0;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ExpertStore> some,
                       ExpertStore::LoadHeld(
                           layout_, held, *pool,
                           [&](int64_t layer, std::span<const ExpertStore::RecordToFill> records) -> absl::Status {
                             ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config_, *file_, layer));
                             for (const ExpertStore::RecordToFill& to : records) {
                               RETURN_IF_ERROR(FillExpertRecord(tensors, layout_.layer(layer), to.expert, to.record));
                             }
                             return absl::OkStatus();
                           },
                           [&](const LoadProgress& progress) { reported = progress.bytes_done; }));
  EXPECT_EQ(reported, BytesOf(layout_, held));
  for (int64_t layer = 0; layer < layout_.num_layers(); ++layer) {
    for (int64_t expert = 0; expert < num_experts(); ++expert) {
      const bool has = (*held[layer])[expert];
      EXPECT_EQ(some->Holds(layer, expert), has);
      if (!has) {
        EXPECT_THAT(some->Record(layer, expert), StatusIs(absl::StatusCode::kNotFound));
        continue;
      }
      ASSERT_OK_AND_ASSIGN(const auto got, some->Record(layer, expert));
      ASSERT_OK_AND_ASSIGN(const auto want, all->Record(layer, expert));
      EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin(), want.end()));
    }
  }
}

}  // namespace
}  // namespace ferry
