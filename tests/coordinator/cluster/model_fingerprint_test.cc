#include "coordinator/cluster/model_fingerprint.h"

#include "common/model/make_model.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

uint64_t FingerprintOfMade(const MakeModelOptions& options) {
  const absl::StatusOr<std::vector<std::byte>> bytes = MakeModelBytes(options);
  EXPECT_OK(bytes);
  const absl::StatusOr<GgufFile> file = GgufFile::Parse(*bytes);
  EXPECT_OK(file);
  return FingerprintOf(*file);
}

TEST(ModelFingerprint, IsTheSameForTheSameModel) {
  EXPECT_EQ(FingerprintOfMade({}), FingerprintOfMade({}));
  EXPECT_NE(FingerprintOfMade({}), 0u);
}

TEST(ModelFingerprint, TellsWeightsShapesTypesAndParametersApart) {
  const uint64_t fingerprint = FingerprintOfMade({});
  EXPECT_NE(FingerprintOfMade({.seed = 2}), fingerprint);
  EXPECT_NE(FingerprintOfMade({.experts = 16}), fingerprint);
  EXPECT_NE(FingerprintOfMade({.dense_dtype = DType::kF16}), fingerprint);
  EXPECT_NE(FingerprintOfMade({.rope_freq_base = 10000}), fingerprint);
}

}  // namespace
}  // namespace ferry
