#include "worker/host_rows.h"

#include <algorithm>
#include <numeric>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAreArray;

constexpr int64_t kCols = 96;

class HostRowsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    const int64_t num_rows = GetParam();
    values_.resize(num_rows * kCols);
    std::iota(values_.begin(), values_.end(), 0.5f);
    ASSERT_OK_AND_ASSIGN(in_, ops_->Allocate(static_cast<int64_t>(values_.size() * sizeof(float))));
    ASSERT_OK(ops_->Upload(in_.data(), std::as_bytes(std::span(values_))));
    ASSERT_OK_AND_ASSIGN(rows_, HostRows::Create(ops_.get(), kCols));
  }
  // Rows 0, n, 2n, …
  std::vector<int32_t> EveryNth(int32_t n) const {
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < GetParam(); row += n) rows.push_back(row);
    return rows;
  }
  std::vector<int32_t> EverySecond() const { return EveryNth(2); }
  std::vector<float> Wanted(std::span<const int32_t> rows) const {
    std::vector<float> wanted;
    for (const int32_t row : rows)
      wanted.insert(wanted.end(), values_.begin() + row * kCols, values_.begin() + (row + 1) * kCols);
    return wanted;
  }
  std::vector<float> Download(std::span<const int32_t> rows) {
    std::vector<float> out(rows.size() * kCols);
    EXPECT_OK(rows_->Download({in_.data(), DType::kF32, GetParam(), kCols}, rows, out));
    return out;
  }
  std::vector<float> Read(std::span<const int32_t> rows) {
    std::vector<float> out(rows.size() * kCols);
    EXPECT_OK(rows_->Fetch({in_.data(), DType::kF32, GetParam(), kCols}, rows));
    rows_->Read(rows, out);
    return out;
  }
  void Begin(bool wanted) {
    EXPECT_OK(rows_->Begin({in_.data(), DType::kF32, GetParam(), kCols}, wanted));
    std::byte any;
    EXPECT_OK(ops_->Download({&any, 1}, in_.data()));  // the next download
  }

  const std::unique_ptr<Ops> ops_ = CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}).value();
  std::vector<float> values_;
  DeviceBuffer in_;
  std::unique_ptr<HostRows> rows_;
};

INSTANTIATE_TEST_SUITE_P(Rows, HostRowsTest, ::testing::Values(1, 3, 8, 9, 600, 1200));

TEST_P(HostRowsTest, AreTheSameAskedForAheadOrNot) {
  std::vector<int32_t> all(GetParam());
  std::iota(all.begin(), all.end(), 0);
  for (const bool wanted : {true, false}) {
    Begin(wanted);
    EXPECT_THAT(Read(EverySecond()), ElementsAreArray(Wanted(EverySecond())));
    EXPECT_THAT(Read(all), ElementsAreArray(values_));
    EXPECT_THAT(Download(EverySecond()), ElementsAreArray(Wanted(EverySecond())));
  }
}

// As the requests of a share read them: any of what came, in any order and more than once.
TEST_P(HostRowsTest, AFewOfThemCanBeReadInParts) {
  Begin(false);
  std::vector<int32_t> wanted = EveryNth(4);
  ASSERT_OK(rows_->Fetch({in_.data(), DType::kF32, GetParam(), kCols}, wanted));
  std::reverse(wanted.begin(), wanted.end());
  for (size_t first = 0; first < wanted.size(); first += 100) {
    const auto part = std::span(wanted).subspan(first, std::min<size_t>(150, wanted.size() - first));
    std::vector<float> out(part.size() * kCols);
    rows_->Read(part, out);
    EXPECT_THAT(out, ElementsAreArray(Wanted(part)));
  }
}

TEST_P(HostRowsTest, AreThoseOfTheLayerThatBeganLast) {
  Begin(true);
  for (float& value : values_) value = -value;
  ASSERT_OK(ops_->Upload(in_.data(), std::as_bytes(std::span(values_))));
  Begin(true);
  EXPECT_THAT(Read(EverySecond()), ElementsAreArray(Wanted(EverySecond())));
}

}  // namespace
}  // namespace ferry
