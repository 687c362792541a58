#include "common/model/tiled_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/half.h"
#include "common/model/formats/formats.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

// Types whose values are written here a second time; formats_test.cc has values of every type.
constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kMXFP4};

// What the GGUF format says an element is, written from its definition and not from the tiled one.
double GgufValue(DType dtype, const std::vector<std::byte>& rows, int64_t cols, int64_t row, int64_t col) {
  const DTypeInfo info = *InfoOf(dtype);
  const int64_t element = row * cols + col, in_block = element % info.block_elements;
  const auto* block = reinterpret_cast<const uint8_t*>(rows.data()) + element / info.block_elements * info.block_bytes;
  const auto u16 = [](const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); };
  const auto nibble = [&](const uint8_t* codes) { return in_block < 16 ? codes[in_block] & 0xF : codes[in_block - 16] >> 4; };
  switch (dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, block, 4);
      return value;
    }
    case DType::kF16:
      return HalfToFloat(u16(block));
    case DType::kBF16:
      return BFloat16ToFloat(u16(block));
    case DType::kQ8_0:
      return HalfToFloat(u16(block)) * static_cast<double>(static_cast<int8_t>(block[2 + in_block]));
    case DType::kQ4_0:
      return HalfToFloat(u16(block)) * static_cast<double>(nibble(block + 2) - 8);
    default: {
      const int code = nibble(block + 1);
      const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
      return std::ldexp(code < 8 ? magnitudes[code] : -magnitudes[code - 8], block[0] - 127);
    }
  }
}

struct Case {
  DType dtype;
  int64_t rows, cols;
};
class TiledLayoutTest : public testing::TestWithParam<Case> {};

TEST_P(TiledLayoutTest, KeepsEveryValueOfTheGgufRows) {
  const auto [dtype, rows, cols] = GetParam();
  const std::vector<std::byte> gguf = RandomGgufRows(dtype, rows, cols, /*seed=*/1);
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(dtype, rows, cols));
  const AlignedBytes memory(layout.bytes);
  ASSERT_OK(TileRows(layout, 0, rows, gguf, memory.span()));
  std::vector<float> decoded(cols);
  for (int64_t row = 0; row < rows; ++row) {
    DecodeTiledRow({layout, memory.data()}, row, decoded.data());
    for (int64_t col = 0; col < cols; ++col) {
      const double want = GgufValue(dtype, gguf, cols, row, col);
      ASSERT_EQ(TiledValue({layout, memory.data()}, row, col), want) << row << ", " << col;
      ASSERT_EQ(decoded[col], want) << row << ", " << col;
    }
  }
}

TEST_P(TiledLayoutTest, IsTheSameBytesHoweverTheRowsAreCut) {
  const auto [dtype, rows, cols] = GetParam();
  const std::vector<std::byte> gguf = RandomGgufRows(dtype, rows, cols, /*seed=*/2);
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(dtype, rows, cols));
  const AlignedBytes whole(layout.bytes), pieces(layout.bytes);
  // The old bytes show wherever a byte is not written.
  std::memset(whole.data(), 0xA5, layout.bytes);
  std::memset(pieces.data(), 0xA5, layout.bytes);
  ASSERT_OK(TileRows(layout, 0, rows, gguf, whole.span()));
  RandomBits random(3);
  for (int64_t row = 0; row < rows;) {
    const int64_t count = std::min(rows - row, 1 + random.Below(40));
    ASSERT_OK(TileRows(layout, row, count,
                       std::span(gguf).subspan(row * layout.gguf_row_bytes(), count * layout.gguf_row_bytes()), pieces.span()));
    row += count;
  }
  EXPECT_EQ(std::memcmp(whole.data(), pieces.data(), layout.bytes), 0);
}

TEST_P(TiledLayoutTest, IsTheSameBytesInMemoryThatIsNotAligned) {
  const auto [dtype, rows, cols] = GetParam();
  const std::vector<std::byte> gguf = RandomGgufRows(dtype, rows, cols, /*seed=*/5);
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(dtype, rows, cols));
  const AlignedBytes aligned(layout.bytes), shifted(layout.bytes + 8);
  ASSERT_OK(TileRows(layout, 0, rows, gguf, aligned.span()));
  ASSERT_OK(TileRows(layout, 0, rows, gguf, shifted.span().subspan(8)));
  EXPECT_EQ(std::memcmp(aligned.data(), shifted.data() + 8, layout.bytes), 0);
}

TEST_P(TiledLayoutTest, FillsTheLastTileWithZeros) {
  const auto [dtype, rows, cols] = GetParam();
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(dtype, rows, cols));
  const AlignedBytes memory(layout.bytes);
  std::memset(memory.data(), 0xA5, layout.bytes);
  ASSERT_OK(TileRows(layout, 0, rows, RandomGgufRows(dtype, rows, cols, /*seed=*/4), memory.span()));
  for (int64_t row = rows; row < layout.row_tiles() * kTileRows; ++row) {
    for (int64_t block = 0; block < layout.col_blocks(); ++block) {
      const std::byte* codes = memory.data() + layout.code_offset(row / kTileRows, block) + row % kTileRows * layout.code_bytes;
      for (int64_t i = 0; i < layout.code_bytes; ++i) ASSERT_EQ(codes[i], std::byte{0}) << row << ", " << block;
      const std::byte* scale = memory.data() + layout.scale_offset(row / kTileRows, block) + row % kTileRows * layout.scale_bytes;
      for (int64_t i = 0; i < layout.scale_bytes; ++i) ASSERT_EQ(scale[i], std::byte{0}) << row << ", " << block;
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const DType dtype : kTypes) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 32}, {16, 64}, {17, 96}, {31, 32}, {130, 288}}) {
      cases.push_back({dtype, rows, cols});
    }
    if (InfoOf(dtype)->block_elements > 1) continue;
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {19, 48}, {33, 69}}) cases.push_back({dtype, rows, cols});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Types, TiledLayoutTest, testing::ValuesIn(Cases()), [](const auto& info) {
  return std::string(NameOf(info.param.dtype)) + "_" + std::to_string(info.param.rows) + "x" + std::to_string(info.param.cols);
});

TEST(TiledLayout, PlacesCodesAndScalesAsItsPictureSays) {
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(DType::kMXFP4, 33, 96));
  EXPECT_EQ(layout.row_tiles(), 3);
  EXPECT_EQ(layout.col_blocks(), 3);
  EXPECT_EQ(layout.code_offset(0, 0), 0);
  EXPECT_EQ(layout.code_offset(1, 2), (3 + 2) * 16 * 16);
  EXPECT_EQ(layout.scales_offset, 9 * 16 * 16);
  EXPECT_EQ(layout.scale_offset(1, 2), layout.scales_offset + 5 * 16);
  EXPECT_EQ(layout.bytes, 9 * 16 * 16 + 256);  // 144 scales on 128 bytes
}

TEST(TiledLayout, UntilesTheBytesItTiled) {
  ForEachFormat([]<DType kType>() {
    SCOPED_TRACE(NameOf(kType));
    ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(kType, 37, 512));
    std::vector<std::byte> gguf(37 * layout.gguf_row_bytes()), back(gguf.size());
    RandomBits random(6);
    for (std::byte& byte : gguf) byte = static_cast<std::byte>(random.Next());
    const AlignedBytes memory(layout.bytes);
    ASSERT_OK(TileRows(layout, 0, 37, gguf, memory.span()));
    ASSERT_OK(UntileRows(layout, 0, 37, memory.span(), back));
    EXPECT_TRUE(gguf == back);
    // Whole tiles take the bytes of the file, and at most the planes' alignment beside them.
    ASSERT_OK_AND_ASSIGN(const TiledLayout whole, TiledLayout::Create(kType, 32, 512));
    EXPECT_EQ(whole.gguf_row_bytes(), InfoOf(kType)->RowBytes(512));
    EXPECT_LT(whole.bytes - 32 * whole.gguf_row_bytes(), 3 * kPlaneAlignment);
  });
}

TEST(TiledLayout, UntilesColumnsThatAreNoWholeTile) {
  const std::vector<std::byte> gguf = RandomGgufRows(DType::kBF16, 37, 69, /*seed=*/8);
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(DType::kBF16, 37, 69));
  ASSERT_EQ(gguf.size(), 37 * 69 * 2);
  const AlignedBytes memory(layout.bytes);
  ASSERT_OK(TileRows(layout, 0, 37, gguf, memory.span()));
  std::vector<std::byte> back(20 * 69 * 2);
  ASSERT_OK(UntileRows(layout, 13, 20, memory.span(), back));
  EXPECT_TRUE(std::equal(back.begin(), back.end(), gguf.begin() + 13 * 69 * 2));
}

TEST(TiledLayout, NamesTheRowAndColumnsOfAScaleThatIsNoNumber) {
  struct Broken {
    DType dtype;
    int64_t cols, block_bytes;
    uint8_t low, high;  // of the block's first two bytes
  };
  for (const Broken& broken :
       {Broken{DType::kQ8_0, 96, 34, 0x00, 0x7C}, {DType::kQ4_0, 96, 18, 0x01, 0xFE}, {DType::kMXFP4, 96, 17, 255, 0}}) {
    SCOPED_TRACE(NameOf(broken.dtype));
    std::vector<std::byte> gguf = RandomGgufRows(broken.dtype, 20, broken.cols, /*seed=*/7);
    ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(broken.dtype, 20, broken.cols));
    const AlignedBytes memory(layout.bytes);
    ASSERT_OK(TileRows(layout, 0, 20, gguf, memory.span()));
    EXPECT_OK(CheckScales(layout, 0, memory.span()));
    std::byte* const block = &gguf[18 * layout.gguf_row_bytes() + 2 * broken.block_bytes];
    block[0] = std::byte{broken.low}, block[1] = std::byte{broken.high};
    ASSERT_OK(TileRows(layout, 0, 20, gguf, memory.span()));
    EXPECT_THAT(CheckScales(layout, 100, memory.span()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row 118, columns 64 to 95")));
  }
}

TEST(TiledLayout, RefusesSizesOutOfRange) {
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(TiledLayout::Create(DType::kF32, 0, 32), StatusIs(code, HasSubstr("rows is 0")));
  EXPECT_THAT(TiledLayout::Create(DType::kF32, int64_t{1} << 31, 32), StatusIs(code, HasSubstr("rows")));
  EXPECT_THAT(TiledLayout::Create(DType::kF32, 1, -32), StatusIs(code, HasSubstr("cols is -32")));
  EXPECT_THAT(TiledLayout::Create(DType::kQ8_0, 1, 33), StatusIs(code, HasSubstr("cols is 33, want a multiple of 32")));
  EXPECT_THAT(TiledLayout::Create(DType::kF32, (int64_t{1} << 31) - 1, (int64_t{1} << 31) - 32),
              StatusIs(code, HasSubstr("too large")));
}

TEST(TiledLayout, RefusesColumnsThatAreNoWholeBlocks) {
  EXPECT_THAT(TiledLayout::Create(DType::kQ4_K, 16, 320),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cols is 320, want a multiple of 256 for Q4_K")));
}

TEST(TiledLayout, RefusesATypeFerryDoesNotCompute) {
  EXPECT_THAT(TiledLayout::Create(DType::kTQ1_0, 16, 256), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("TQ1_0")));
}

TEST(TiledLayout, RefusesToTileWhatDoesNotFit) {
  const auto code = absl::StatusCode::kInvalidArgument;
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(DType::kQ8_0, 20, 64));
  const AlignedBytes memory(layout.bytes);
  const std::vector<std::byte> gguf(20 * 68);
  EXPECT_THAT(TileRows(layout, 0, 21, gguf, memory.span()), StatusIs(code, HasSubstr("a matrix of 20 rows")));
  EXPECT_THAT(TileRows(layout, 15, 6, gguf, memory.span()), StatusIs(code, HasSubstr("a matrix of 20 rows")));
  EXPECT_THAT(TileRows(layout, -1, 1, gguf, memory.span()), StatusIs(code, HasSubstr("a matrix of 20 rows")));
  EXPECT_THAT(TileRows(layout, 0, 19, gguf, memory.span()), StatusIs(code, HasSubstr("want 1292")));
  EXPECT_THAT(TileRows(layout, 0, 20, gguf, memory.span().first(layout.bytes - 1)), StatusIs(code, HasSubstr("matrix holds")));
  EXPECT_OK(TileRows(layout, 20, 0, {}, memory.span()));
}

}  // namespace
}  // namespace ferry
