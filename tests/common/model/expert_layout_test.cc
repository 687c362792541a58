#include "common/model/expert_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ExpertLayout LayoutOf(DType dtype, int64_t n_embd, int64_t n_ff, bool has_bias) {
  return *ExpertLayout::Create(dtype, dtype, dtype, n_embd, n_ff, has_bias);
}

TEST(ExpertLayout, HoldsThreeMatricesAndTheirBiasesWithoutOverlap) {
  for (const bool has_bias : {false, true}) {
    const ExpertLayout layout = LayoutOf(DType::kMXFP4, 96, 224, has_bias);
    std::vector<std::pair<int64_t, int64_t>> regions = {
        {layout.gate_offset, layout.gate.bytes}, {layout.up_offset, layout.up.bytes}, {layout.down_offset, layout.down.bytes}};
    if (has_bias) {
      regions.push_back({layout.gate_bias_offset, 224 * 4});
      regions.push_back({layout.up_bias_offset, 224 * 4});
      regions.push_back({layout.down_bias_offset, 96 * 4});
    }
    int64_t end = 0;
    for (const auto& [offset, bytes] : regions) {
      EXPECT_GE(offset, end);
      EXPECT_EQ(offset % kPlaneAlignment, 0);
      end = offset + bytes;
    }
    EXPECT_LE(end, layout.bytes);
    EXPECT_EQ(layout.bytes % kRecordAlignment, 0);
    EXPECT_LT(layout.bytes - end, kRecordAlignment);
  }
}

TEST(ExpertLayout, PadsBiasesToWholeTiles) {
  const ExpertLayout layout = LayoutOf(DType::kF16, 32, 32 * 3, true);
  EXPECT_GE(layout.up_bias_offset - layout.gate_bias_offset, 96 * 4);
  EXPECT_GE(layout.bytes - layout.down_bias_offset, 32 * 4);
}

TEST(ExpertLayout, GivesNoBiasWhereThereIsNone) {
  const ExpertLayout layout = LayoutOf(DType::kF32, 32, 32, false);
  const std::vector<std::byte> record(layout.bytes);
  EXPECT_EQ(layout.GateBias(record.data()), nullptr);
  EXPECT_EQ(layout.DownBias(record.data()), nullptr);
  EXPECT_EQ(layout.Down(record.data()).data, record.data() + layout.down_offset);
}

TEST(ExpertLayout, CountsTheOperationsOfAToken) {
  EXPECT_EQ(LayoutOf(DType::kQ8_0, 64, 96, true).flops_per_token(), 2 * 3 * 64 * 96);
}

TEST(ExpertLayout, IsTheSizeOfAGptOssExpert) {
  // 2880 x 2880 three times at 17 bytes in 32, plus three biases.
  const ExpertLayout layout = LayoutOf(DType::kMXFP4, 2880, 2880, true);
  EXPECT_GE(layout.bytes, 3 * 2880 * 2880 / 32 * 17 + 3 * 2880 * 4);
  EXPECT_LE(layout.bytes, 3 * 2880 * 2880 / 32 * 17 + 3 * 2880 * 4 + kRecordAlignment);
}

TEST(ExpertLayout, NamesTheMatrixItRefuses) {
  EXPECT_THAT(ExpertLayout::Create(DType::kF32, DType::kTQ1_0, DType::kF32, 256, 256, false),
              StatusIs(kInvalid, HasSubstr("up: type TQ1_0")));
  EXPECT_THAT(ExpertLayout::Create(DType::kF32, DType::kF32, DType::kQ8_0, 64, 33, false),
              StatusIs(kInvalid, HasSubstr("down: cols is 33")));
  EXPECT_THAT(ExpertLayout::Create(DType::kQ8_0, DType::kF32, DType::kF32, 33, 64, false),
              StatusIs(kInvalid, HasSubstr("gate: cols is 33")));
}

TEST(ArenaLayout, LaysLayersOfDifferentTypesOneAfterTheOther) {
  const ExpertLayout small = LayoutOf(DType::kMXFP4, 64, 64, true), large = LayoutOf(DType::kQ8_0, 64, 64, true);
  ASSERT_OK_AND_ASSIGN(const ArenaLayout arena, ArenaLayout::Create({small, large, small}, 5));
  EXPECT_EQ(arena.bytes(), 10 * small.bytes + 5 * large.bytes);
  EXPECT_EQ(arena.max_record_bytes(), large.bytes);
  EXPECT_EQ(*arena.OffsetOf(0, 0), 0);
  EXPECT_EQ(*arena.OffsetOf(1, 2), 5 * small.bytes + 2 * large.bytes);
  EXPECT_EQ(*arena.OffsetOf(2, 4), arena.bytes() - small.bytes);
}

TEST(ArenaLayout, KeepsAnEntryOfNoBytesForALayerWithoutExperts) {
  const ExpertLayout layer = LayoutOf(DType::kF32, 32, 32, false);
  ASSERT_OK_AND_ASSIGN(const ArenaLayout arena, ArenaLayout::Create({std::nullopt, layer, std::nullopt, layer}, 3));
  EXPECT_EQ(arena.num_layers(), 4);
  EXPECT_EQ(arena.bytes(), 6 * layer.bytes);
  EXPECT_EQ(arena.layer(0).bytes, 0);
  EXPECT_FALSE(arena.HasExperts(0));
  EXPECT_EQ(arena.FirstWithExperts(), 1);
  EXPECT_EQ(arena.NextWithExperts(2, 4), 3);
  EXPECT_EQ(arena.NextWithExperts(2, 3), 3) << "none before the end";
  EXPECT_EQ(arena.num_records(), 6);
  EXPECT_EQ(arena.num_records(0, 1), 0);
  EXPECT_EQ(*arena.OffsetOf(3, 0), 3 * layer.bytes);
  EXPECT_THAT(arena.OffsetOf(2, 0), StatusIs(kInvalid, HasSubstr("layer is 2, which has no experts")));
}

TEST(ArenaLayout, RefusesALayerOrAnExpertThatIsNotThere) {
  ASSERT_OK_AND_ASSIGN(const ArenaLayout arena, ArenaLayout::Create({LayoutOf(DType::kF32, 32, 32, false)}, 4));
  EXPECT_THAT(arena.OffsetOf(1, 0), StatusIs(kInvalid, HasSubstr("layer is 1, want 0 to 0")));
  EXPECT_THAT(arena.OffsetOf(-1, 0), StatusIs(kInvalid, HasSubstr("layer is -1")));
  EXPECT_THAT(arena.OffsetOf(0, 4), StatusIs(kInvalid, HasSubstr("expert is 4, want 0 to 3")));
  EXPECT_THAT(arena.OffsetOf(0, -1232513024), StatusIs(kInvalid, HasSubstr("expert is -1232513024")));
}

TEST(ArenaLayout, GivesRecordsOnlyOfAnArenaThatHoldsThemAll) {
  ASSERT_OK_AND_ASSIGN(const ArenaLayout arena, ArenaLayout::Create({LayoutOf(DType::kF32, 32, 32, false)}, 2));
  const std::vector<std::byte> memory(arena.bytes());
  ASSERT_OK_AND_ASSIGN(const auto record, arena.RecordIn(memory, 0, 1));
  EXPECT_EQ(record.data(), memory.data() + arena.layer(0).bytes);
  EXPECT_EQ(static_cast<int64_t>(record.size()), arena.layer(0).bytes);
  EXPECT_THAT(arena.RecordIn(std::span(memory).first(memory.size() - 1), 0, 0), StatusIs(kInvalid, HasSubstr("the arena holds")));
  EXPECT_THAT(arena.RecordIn(memory, 0, 2), StatusIs(kInvalid, HasSubstr("expert is 2")));
}

TEST(ArenaLayout, RefusesNoLayersAndTooManyExperts) {
  const ExpertLayout layer = LayoutOf(DType::kF32, 32, 32, false);
  EXPECT_THAT(ArenaLayout::Create({}, 4), StatusIs(kInvalid, HasSubstr("layers have no experts")));
  EXPECT_THAT(ArenaLayout::Create({layer}, 0), StatusIs(kInvalid, HasSubstr("num_experts is 0")));
  EXPECT_THAT(ArenaLayout::Create({layer}, 1025), StatusIs(kInvalid, HasSubstr("num_experts is 1025")));
}

TEST(ArenaLayout, RefusesSizesThatOverflow) {
  const ExpertLayout huge = LayoutOf(DType::kF32, int64_t{1} << 29, int64_t{1} << 29, false);
  EXPECT_THAT(ArenaLayout::Create({huge}, 1024), StatusIs(kInvalid, HasSubstr("too large")));
}

}  // namespace
}  // namespace ferry
