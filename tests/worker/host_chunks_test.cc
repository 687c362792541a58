#include "worker/host_chunks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

// Four rows, two ranks, four experts: 0 has rows 0 1, 1 has none, 2 has rows 0 2 3, 3 has rows 1 2 3.
struct Groups {
  std::vector<int32_t> offsets = {0, 2, 2, 5, 8};
  std::vector<int32_t> rows = {0, 1, 0, 2, 3, 1, 2, 3};
  std::vector<int32_t> outs = {0, 2, 1, 4, 6, 3, 5, 7};
  HostGroups view() const { return {offsets, rows, outs}; }
};

TEST(HostChunks, MakesOneRequestOfWhatFits) {
  const Groups groups;
  const std::vector<HostChunk> chunks = CutIntoChunks(std::vector<int32_t>{0, 3}, groups.view(), 4, 8);
  ASSERT_THAT(chunks, SizeIs(1));
  EXPECT_THAT(chunks[0].uses, ElementsAre(ActivatedExpert{.expert = 0, .tokens = 2}, ActivatedExpert{.expert = 3, .tokens = 3}));
  EXPECT_THAT(chunks[0].rows, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(chunks[0].entry_rows, ElementsAre(0, 1, 1, 2, 3));
  EXPECT_THAT(chunks[0].outs, ElementsAre(0, 2, 3, 5, 7));
}

TEST(HostChunks, SendsOnlyTheRowsThatAreUsed) {
  const Groups groups;
  const std::vector<HostChunk> chunks = CutIntoChunks(std::vector<int32_t>{2}, groups.view(), 4, 8);
  ASSERT_THAT(chunks, SizeIs(1));
  EXPECT_THAT(chunks[0].rows, ElementsAre(0, 2, 3));
  EXPECT_THAT(chunks[0].entry_rows, ElementsAre(0, 1, 2));
}

TEST(HostChunks, CutsBetweenExperts) {
  const Groups groups;
  const std::vector<HostChunk> chunks = CutIntoChunks(std::vector<int32_t>{0, 2, 3}, groups.view(), 4, 5);
  ASSERT_THAT(chunks, SizeIs(2));
  EXPECT_THAT(chunks[0].uses, SizeIs(2));
  EXPECT_THAT(chunks[1].uses, ElementsAre(ActivatedExpert{.expert = 3, .tokens = 3}));
}

TEST(HostChunks, CutsAnExpertByRowsOnlyWhenItIsLargerThanARequest) {
  const Groups groups;
  const std::vector<HostChunk> chunks = CutIntoChunks(std::vector<int32_t>{0, 2}, groups.view(), 4, 2);
  ASSERT_THAT(chunks, SizeIs(3));
  EXPECT_THAT(chunks[0].uses, ElementsAre(ActivatedExpert{.expert = 0, .tokens = 2}));
  EXPECT_THAT(chunks[1].uses, ElementsAre(ActivatedExpert{.expert = 2, .tokens = 2}));
  EXPECT_THAT(chunks[2].uses, ElementsAre(ActivatedExpert{.expert = 2, .tokens = 1}));
}

TEST(HostChunks, CoversEveryEntryOnceWhateverTheCapacities) {
  const Groups groups;
  for (int64_t max_rows = 1; max_rows <= 5; ++max_rows) {
    for (int64_t max_entries = 1; max_entries <= 9; ++max_entries) {
      std::multiset<int32_t> outs;
      for (const HostChunk& chunk : CutIntoChunks(std::vector<int32_t>{0, 2, 3}, groups.view(), max_rows, max_entries)) {
        EXPECT_LE(static_cast<int64_t>(chunk.rows.size()), max_rows);
        EXPECT_LE(static_cast<int64_t>(chunk.outs.size()), max_entries);
        EXPECT_EQ(chunk.outs.size(), chunk.entry_rows.size());
        for (size_t i = 0; i < chunk.outs.size(); ++i) {
          EXPECT_EQ(chunk.rows[chunk.entry_rows[i]], chunk.outs[i] / 2) << "an out is row * top_k + rank";
        }
        outs.insert(chunk.outs.begin(), chunk.outs.end());
      }
      EXPECT_EQ(outs, (std::multiset<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
    }
  }
}

TEST(HostChunks, IsEmptyWithoutExperts) {
  const Groups groups;
  EXPECT_THAT(CutIntoChunks({}, groups.view(), 4, 8), SizeIs(0));
}

}  // namespace
}  // namespace ferry
