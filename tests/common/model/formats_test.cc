// Every number format against values that its own project's code gave: tests/common/testdata/types, and ../shared/golden where it
// is.

#include "common/model/formats/formats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/model/decode_rows.h"
#include "common/model/random_blocks.h"
#include "common/model/tiled_layout.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

template <typename T>
std::vector<T> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// Compares the values of the rows in path.bin, as stored and as tiled, with path.f32; the sign of zero aside.
void CheckValues(DType dtype, const std::string& path, int64_t cols) {
  SCOPED_TRACE(path);
  const std::vector<std::byte> rows = ReadFile<std::byte>(path + ".bin");
  const std::vector<float> want = ReadFile<float>(path + ".f32");
  ASSERT_GT(want.size(), 0u);
  std::vector<float> got(want.size());
  ASSERT_OK(DecodeRows(dtype, cols, rows, got));
  EXPECT_TRUE(got == want);

  const int64_t num_rows = static_cast<int64_t>(want.size()) / cols;
  ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(dtype, num_rows, cols));
  const AlignedBytes memory(layout.bytes);
  ASSERT_OK(TileRows(layout, 0, num_rows, rows, memory.span()));
  for (int64_t row = 0; row < num_rows; ++row) DecodeTiledRow({layout, memory.data()}, row, &got[row * cols]);
  EXPECT_TRUE(got == want);
}

TEST(Formats, GiveTheValuesOfTheirOwnProjects) {
  ForEachFormat([]<DType kType>() {
    if (kType == DType::kF32) return;  // its values are its bytes
    CheckValues(kType, SourcePath("tests/common/testdata/types/") + std::string(Format<kType>::kName), 512);
  });
}

TEST(Formats, GiveTheValuesOfEverySharedRow) {
  const std::string mainline = SourcePath("../shared/golden/types/"), ik = SourcePath("../shared/golden/types_ik/");
  if (!std::filesystem::exists(mainline) || !std::filesystem::exists(ik)) GTEST_SKIP() << "no ../shared/golden here";
  int checked = 0;
  ForEachFormat([&]<DType kType>() {
    const std::string name(Format<kType>::kName);
    const auto check = [&](const std::string& path, int64_t cols) {
      if (!std::filesystem::exists(path + ".bin")) return;
      CheckValues(kType, path, cols);
      ++checked;
    };
    check(mainline + name, 512);
    for (const int64_t cols : {512, 1024}) {
      for (const char* kind : {"", "_rand"}) check(ik + name + "_" + std::to_string(cols) + kind, cols);
    }
  });
  EXPECT_EQ(checked, 24 + 4 * 12);
}

TEST(Formats, TakeTheBytesOfTheirBlocks) {
  ForEachFormat([]<DType kType>() {
    using F = Format<kType>;
    SCOPED_TRACE(F::kName);
    EXPECT_EQ(F::kRowBytes + 512 / F::kBlockCols * F::kBlockBytes, InfoOf(kType)->RowBytes(512));
    EXPECT_EQ(F::kUnitCols / kTileCols * F::kCodeBytes + F::kUnitCols / F::kScaleCols * F::kScaleBytes, F::kUnitBytes);
  });
}

TEST(Formats, RandomBlocksHaveTheSizeAskedForAndFiniteScales) {
  ForEachFormat([]<DType kType>() {
    using F = Format<kType>;
    if (!F::kInteger) return;
    SCOPED_TRACE(F::kName);
    constexpr int64_t kRows = 32, kCols = 2048;
    for (const double rms : {0.02, 1.0}) {
      const std::vector<std::byte> rows = RandomGgufRows(kType, kRows, kCols, 3, static_cast<float>(rms));
      std::vector<float> values(kRows * kCols);
      ASSERT_OK(DecodeRows(kType, kCols, rows, values));
      double squares = 0, sum = 0;
      for (const float value : values) squares += static_cast<double>(value) * value, sum += value;
      EXPECT_THAT(std::sqrt(squares / (kRows * kCols)) / rms, testing::AllOf(testing::Ge(0.6), testing::Le(1.6)));
      EXPECT_LE(std::abs(sum / (kRows * kCols)), 0.4 * rms);
      ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(kType, kRows, kCols));
      const AlignedBytes memory(layout.bytes);
      ASSERT_OK(TileRows(layout, 0, kRows, rows, memory.span()));
      EXPECT_OK(CheckScales(layout, 0, memory.span()));
    }
  });
}

TEST(Formats, AScaleThatIsNoNumberIsFound) {
  ForEachFormat([]<DType kType>() {
    using F = Format<kType>;
    if constexpr (F::kInteger) {
      SCOPED_TRACE(F::kName);
      std::vector<std::byte> rows = RandomGgufRows(kType, 20, 512, 3);
      ASSERT_OK_AND_ASSIGN(const TiledLayout layout, TiledLayout::Create(kType, 20, 512));
      const AlignedBytes memory(layout.bytes);
      // All bits set in row 18 make every kind of scale infinite or NaN.
      std::fill_n(rows.begin() + 18 * layout.gguf_row_bytes(), layout.gguf_row_bytes(), std::byte{255});
      ASSERT_OK(TileRows(layout, 0, 20, rows, memory.span()));
      EXPECT_THAT(CheckScales(layout, 0, memory.span()),
                  StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("of row 18")));
    }
  });
}

}  // namespace
}  // namespace ferry
