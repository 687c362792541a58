#include "kernels/kv_cache_format.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <vector>

#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"

namespace ferry {
namespace {

// One plane, as keys and values are made of.
struct Plane {
  explicit Plane(DType dtype, int64_t num_blocks = 3, int64_t num_kv_heads = 2, int64_t head_dim = 64)
      : memory(KvPlaneBytes(dtype, num_blocks, num_kv_heads, head_dim)) {
    cache = {.keys = memory.data(),
             .values = memory.data(),
             .key_type = dtype,
             .value_type = dtype,
             .num_blocks = num_blocks,
             .num_kv_heads = num_kv_heads,
             .head_dim = head_dim};
  }
  std::vector<float> RoundTrip(const std::vector<float>& row, int64_t number = 0) {
    StoreKey(cache, number, row.data());
    std::vector<float> back(row.size());
    LoadKey(cache, number, back.data());
    return back;
  }
  AlignedBytes memory;
  KvLayer cache;
};

TEST(KvCacheFormat, KeepsEveryRowApart) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0}) {
    Plane plane(dtype);
    std::set<int64_t> rows;
    for (int64_t block = 0; block < 3; ++block) {
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t token = 0; token < kKvBlockTokens; ++token) {
          const int64_t row = KvRow(plane.cache, block, head, token);
          EXPECT_TRUE(rows.insert(row).second);
          StoreKey(plane.cache, row, std::vector<float>(64, static_cast<float>(row)).data());
        }
      }
    }
    ASSERT_EQ(*rows.rbegin(), 3 * 2 * kKvBlockTokens - 1);
    for (const int64_t row : rows) {
      std::vector<float> back(64);
      LoadKey(plane.cache, row, back.data());
      EXPECT_TRUE(Close(back, std::vector<float>(64, static_cast<float>(row)), 0, 1e-3)) << row;
    }
  }
}

TEST(KvCacheFormat, FollowsTheBlockTableAndWrapsInARing) {
  const Plane plane(DType::kF16, /*num_blocks=*/8);
  const int32_t table[] = {5, 2};
  EXPECT_EQ(KvRowAt(plane.cache, table, 2, 1, 33), KvRow(plane.cache, 2, 1, 1));
  EXPECT_EQ(KvRowAt(plane.cache, table, 2, 0, 64 + 7), KvRow(plane.cache, 5, 0, 7));
}

TEST(KvCacheFormat, RoundsToF16) {
  Plane plane(DType::kF16);
  std::vector<float> row(64, 0);
  row[0] = 1.0f + 0x1p-11f;
  row[1] = 65520;
  const std::vector<float> back = plane.RoundTrip(row);
  EXPECT_EQ(back[0], 1.0f);
  EXPECT_EQ(back[1], std::numeric_limits<float>::infinity());
}

TEST(KvCacheFormat, QuantisesToTheLargestOf32) {
  Plane plane(DType::kQ8_0);
  std::vector<float> row(64, 0);
  row[0] = 127;
  row[1] = -63.5;  // a tie: to the even code, -64
  row[2] = 0.4f;
  row[32] = 254;  // another block of 32: its scale is 2
  row[33] = 3;    // 1.5 steps: to the even code, 2
  const std::vector<float> back = plane.RoundTrip(row, 5);
  EXPECT_EQ(back[0], 127);
  EXPECT_EQ(back[1], -64);
  EXPECT_EQ(back[2], 0);
  EXPECT_EQ(back[32], 254);
  EXPECT_EQ(back[33], 4);
}

TEST(KvCacheFormat, StaysWithinHalfAStep) {
  Plane plane(DType::kQ8_0);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::vector<float> row = RandomFloats(64, seed, seed % 2 == 0 ? 1e-3f : 30.0f);
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::abs(x));
    // Half a step, and the largest value once more by how the scale was rounded.
    EXPECT_TRUE(Close(plane.RoundTrip(row), row, largest / 127 * 0.5 * 1.001 + largest * 0x1p-11)) << seed;
  }
}

TEST(KvCacheFormat, KeepsHugeValuesFiniteAndShowsNan) {
  Plane plane(DType::kQ8_0);
  std::vector<float> row(64, 1e30f);
  row[40] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> back = plane.RoundTrip(row);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(back[i], 65504.0f * 127) << i;
  for (int i = 32; i < 64; ++i) EXPECT_TRUE(std::isnan(back[i])) << i;
}

TEST(KvCacheFormat, TakesTheBytesItSays) {
  EXPECT_EQ(KvPlaneBytes(DType::kF16, 3, 2, 64), 3 * 2 * 32 * 64 * 2);
  EXPECT_EQ(KvPlaneBytes(DType::kQ8_0, 3, 2, 64), 3 * 2 * 32 * (64 + 2 * 2));
  EXPECT_EQ(KvPlaneBytes(DType::kF32, 3, 2, 64), 3 * 2 * 32 * 64 * 4);
}

}  // namespace
}  // namespace ferry
