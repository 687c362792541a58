#include "common/model/dtype.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(DType, KnowsBlocksOfTheFormatsTable) {
  struct Row {
    uint32_t id;
    std::string_view name;
    int64_t block_elements, block_bytes;
  };
  // Checked against bits per weight as published: Q4_K 4.5, Q6_K 6.5625, IQ4_XS 4.25, MXFP4 4.25, TQ1_0 1.6875.
  for (const Row& row : {Row{0, "F32", 1, 4},
                         {1, "F16", 1, 2},
                         {2, "Q4_0", 32, 18},
                         {3, "Q4_1", 32, 20},
                         {6, "Q5_0", 32, 22},
                         {7, "Q5_1", 32, 24},
                         {8, "Q8_0", 32, 34},
                         {10, "Q2_K", 256, 84},
                         {11, "Q3_K", 256, 110},
                         {12, "Q4_K", 256, 144},
                         {13, "Q5_K", 256, 176},
                         {14, "Q6_K", 256, 210},
                         {20, "IQ4_NL", 32, 18},
                         {23, "IQ4_XS", 256, 136},
                         {29, "IQ1_M", 256, 56},
                         {30, "BF16", 1, 2},
                         {34, "TQ1_0", 256, 54},
                         {39, "MXFP4", 32, 17}}) {
    SCOPED_TRACE(row.name);
    const std::optional<DTypeInfo> info = InfoOf(DType(row.id));
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->name, row.name);
    EXPECT_EQ(info->block_elements, row.block_elements);
    EXPECT_EQ(info->block_bytes, row.block_bytes);
  }
}

TEST(DType, ComputesWithTheTypesOfTheList) {
  int computable = 0;
  for (uint32_t id = 0; id < 256; ++id) computable += InfoOf(DType(id)) && InfoOf(DType(id))->computable;
  EXPECT_EQ(computable, 25 + 12);  // of ggml's numbering and of ik_llama.cpp's
  for (const DType type : {DType::kF32, DType::kMXFP4, DType::kQ4_K, DType::kIQ1_M, DType::kIQ4_KSS}) {
    EXPECT_TRUE(InfoOf(type)->computable) << NameOf(type);
  }
  for (const DType type : {DType::kTQ1_0, DType::kQ1_0, DType::kI32, DType::kQ8_K}) {
    EXPECT_FALSE(InfoOf(type)->computable) << NameOf(type);
  }
}

TEST(DType, DoesNotKnowRemovedAndUnknownIds) {
  for (const uint32_t id : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 77u, 0xffffffffu}) {
    EXPECT_FALSE(InfoOf(DType(id)).has_value()) << id;
  }
  EXPECT_EQ(NameOf(DType(77)), "type 77");
  EXPECT_EQ(NameOf(DType(0xffffffff)), "type above 255");
}

}  // namespace
}  // namespace ferry
