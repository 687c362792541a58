#include "common/model/decode_rows.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/gguf/gguf_writer.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::vector<float>> Decode(DType dtype, const GgufBytes& data, int64_t elements) {
  std::vector<float> values(elements);
  RETURN_IF_ERROR(DecodeRows(dtype, std::max<int64_t>(1, elements), data.bytes(), values));
  return values;
}

TEST(DecodeRows, ReadsFloats) {
  GgufBytes f32, f16, bf16;
  f32.Add(1.5f).Add(-0.25f);
  f16.Add(uint16_t{0x3e00}).Add(uint16_t{0xb400}).Add(uint16_t{0x0001});
  bf16.Add(uint16_t{0x3fc0}).Add(uint16_t{0xbe80});
  ASSERT_OK_AND_ASSIGN(const std::vector<float> from_f32, Decode(DType::kF32, f32, 2));
  EXPECT_THAT(from_f32, ElementsAre(1.5f, -0.25f));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> from_f16, Decode(DType::kF16, f16, 3));
  EXPECT_THAT(from_f16, ElementsAre(1.5f, -0.25f, 0x1p-24f));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> from_bf16, Decode(DType::kBF16, bf16, 2));
  EXPECT_THAT(from_bf16, ElementsAre(1.5f, -0.25f));
}

TEST(DecodeRows, ScalesTheSignedCodesOfQ8_0) {
  GgufBytes block;
  block.Add(uint16_t{0x3800});  // 0.5
  for (int i = 0; i < 32; ++i) block.Add(static_cast<int8_t>(i * 8 - 128));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> values, Decode(DType::kQ8_0, block, 32));
  for (int i = 0; i < 32; ++i) EXPECT_EQ(values[i], 0.5f * static_cast<float>(i * 8 - 128)) << i;
}

TEST(DecodeRows, TakesTheFirstHalfOfQ4_0FromLowAndTheSecondFromHighBits) {
  GgufBytes block;
  block.Add(uint16_t{0xc000});  // -2
  for (int i = 0; i < 16; ++i) block.Add(static_cast<uint8_t>(i | (15 - i) << 4));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> values, Decode(DType::kQ4_0, block, 32));
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], -2.0f * static_cast<float>(i - 8)) << i;
    EXPECT_EQ(values[i + 16], -2.0f * static_cast<float>(15 - i - 8)) << i;
  }
}

TEST(DecodeRows, ReadsEveryCodeOfMxfp4) {
  GgufBytes block;
  block.Add(uint8_t{129});  // 2^2
  for (int i = 0; i < 16; ++i) block.Add(static_cast<uint8_t>(i | (15 - i) << 4));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> values, Decode(DType::kMXFP4, block, 32));
  const float want[16] = {0, 2, 4, 6, 8, 12, 16, 24, -0.0f, -2, -4, -6, -8, -12, -16, -24};
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], want[i]) << i;
    EXPECT_EQ(values[i + 16], want[15 - i]) << i;
  }
}

TEST(DecodeRows, ReadsTheSmallestAndTheInvalidScaleOfMxfp4) {
  GgufBytes block;
  block.Add(uint8_t{0}).Add(uint8_t{0x21}).Zeros(15);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> smallest, Decode(DType::kMXFP4, block, 32));
  EXPECT_EQ(smallest[0], 0x1p-128f);
  EXPECT_EQ(smallest[16], 0x1p-127f);
  GgufBytes invalid;
  invalid.Add(uint8_t{255}).Add(uint8_t{0x21}).Zeros(15);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> nan, Decode(DType::kMXFP4, invalid, 32));
  EXPECT_TRUE(std::isnan(nan[0]));
}

TEST(DecodeRows, DecodesBlockAfterBlock) {
  GgufBytes blocks;
  for (const uint8_t scale : {127, 128}) {
    blocks.Add(scale);
    for (int i = 0; i < 16; ++i) blocks.Add(uint8_t{0x22});
  }
  ASSERT_OK_AND_ASSIGN(const std::vector<float> values, Decode(DType::kMXFP4, blocks, 64));
  EXPECT_EQ(values[31], 1.0f);
  EXPECT_EQ(values[32], 2.0f);
}

TEST(DecodeRows, RefusesSizesThatDisagree) {
  GgufBytes data;
  data.Zeros(34);
  EXPECT_THAT(Decode(DType::kQ8_0, data, 31), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("blocks of 32")));
  EXPECT_THAT(Decode(DType::kQ8_0, data, 64), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("34 bytes")));
  EXPECT_THAT(Decode(DType::kF32, data, 9), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(Decode(DType::kF32, GgufBytes(), 0));
}

TEST(DecodeRows, RefusesATypeItDoesNotCompute) {
  GgufBytes data;
  data.Zeros(144);
  EXPECT_THAT(Decode(DType::kTQ1_0, data, 256), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("TQ1_0")));
  EXPECT_THAT(Decode(DType(77), data, 256), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("type 77")));
}

}  // namespace
}  // namespace ferry
