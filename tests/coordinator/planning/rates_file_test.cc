#include "coordinator/planning/rates_file.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

const absl::Time kMeasured = absl::FromUnixSeconds(1'700'000'000);

class RatesFileTest : public ::testing::Test {
 protected:
  ~RatesFileTest() override { std::filesystem::remove_all(directory_); }

  static MachineRates Some() {
    return {.host = {.read_bytes_per_second = 166e9, .flops_per_second = 3e12, .flops_at_rows = {1e12, 2e12, 3e12, 4e12}},
            .host_beside_links = {.read_bytes_per_second = 120e9, .flops_per_second = 2.5e12},
            .workers = {{.link = {.alone = 54e9, .together = 50e9, .beside_host = 48e9},
                         .experts = {.read_bytes_per_second = 2e12, .flops_per_second = 5e14},
                         .operation_seconds = 4e-6,
                         .message_seconds = 90e-6},
                        {}},
            .measured = kMeasured};
  }
  void Spoil(const std::string& text) { std::ofstream(RatesPath(directory_, "key")) << text; }

  const std::string directory_ = ::testing::TempDir() + "/ferry-rates-" + std::to_string(getpid()) + "/cache/ferry";
};

TEST_F(RatesFileTest, GivesBackWhatWasKept) {
  ASSERT_OK(WriteRates(directory_, "key", Some()));
  ASSERT_OK_AND_ASSIGN(const MachineRates rates, ReadRates(directory_, "key", kMeasured + absl::Hours(1)));
  EXPECT_EQ(rates, Some());
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_)) ++files;
  EXPECT_EQ(files, 1u) << "nothing temporary is left";
}

TEST_F(RatesFileTest, HasNoneOfAnotherKey) {
  ASSERT_OK(WriteRates(directory_, "key", Some()));
  EXPECT_THAT(ReadRates(directory_, "another", kMeasured), StatusIs(absl::StatusCode::kNotFound));
  std::filesystem::copy_file(RatesPath(directory_, "key"), RatesPath(directory_, "another"));
  EXPECT_THAT(ReadRates(directory_, "another", kMeasured), StatusIs(absl::StatusCode::kDataLoss)) << "two keys of one name";
}

TEST_F(RatesFileTest, ForgetsOldOnesAndThoseOfTheFuture) {
  ASSERT_OK(WriteRates(directory_, "key", Some()));
  EXPECT_OK(ReadRates(directory_, "key", kMeasured + kRatesLast));
  EXPECT_THAT(ReadRates(directory_, "key", kMeasured + kRatesLast + absl::Seconds(1)), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ReadRates(directory_, "key", kMeasured - absl::Seconds(1)), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(RatesFileTest, TrustsNothingDamaged) {
  ASSERT_OK(WriteRates(directory_, "key", Some()));
  std::string text;
  std::getline(std::ifstream(RatesPath(directory_, "key")), text, '\0');
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return changed;
  };
  for (const std::string& damaged :
       {std::string(), std::string("{}"), std::string("[1, 2"), text.substr(0, text.size() / 2),
        with("\"version\": 4", "\"version\": \"two\""), with("166000000000.0", "-1"), with("166000000000.0", "1e300"),
        with("166000000000.0", "\"fast\""), with("flops_at_rows", "flops_at_columns")}) {
    Spoil(damaged);
    EXPECT_THAT(ReadRates(directory_, "key", kMeasured), StatusIs(absl::StatusCode::kDataLoss)) << damaged;
  }
  Spoil(with("\"version\": 4", "\"version\": 1"));
  EXPECT_THAT(ReadRates(directory_, "key", kMeasured), StatusIs(absl::StatusCode::kNotFound)) << "no damage to warn of";
  ASSERT_OK(WriteRates(directory_, "key", Some())) << "the next start measures and keeps it again";
  EXPECT_OK(ReadRates(directory_, "key", kMeasured));
}

TEST_F(RatesFileTest, ForgetsRatesThatStepsHaveContradicted) {
  EXPECT_FALSE(RemoveRates(directory_, "key"));
  ASSERT_OK(WriteRates(directory_, "key", Some()));
  ASSERT_OK(WriteRates(directory_, "another", Some()));
  EXPECT_TRUE(RemoveRates(directory_, "key"));
  EXPECT_THAT(ReadRates(directory_, "key", kMeasured), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_OK(ReadRates(directory_, "another", kMeasured));
}

TEST_F(RatesFileTest, SaysWhereItCannotWrite) {
  EXPECT_FALSE(RemoveRates("", "key"));
  EXPECT_THAT(WriteRates("", "key", Some()), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(WriteRates("/proc/ferry", "key", Some()),
              StatusIs(absl::StatusCode::kFailedPrecondition, ::testing::HasSubstr("/proc/ferry")));
}

TEST(RatesKey, ChangesWithEngineRecordAndWorkers) {
  const auto arena = [](int64_t n_ff) {
    const ExpertLayout layout = ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, 256, n_ff, true).value();
    return ArenaLayout::Create({layout}, 8).value();
  };
  const RatedWorker slots = {.device = "cuda:0 (A)", .transport = "shm", .has_slots = true};
  RatedWorker grpc = slots, none = slots, other = slots;
  grpc.transport = "grpc", none.has_slots = false, other.device = "cuda:0 (B)";
  const std::string key = RatesKey("cpu", arena(192), std::vector{slots});
  EXPECT_EQ(RatesKey("cpu", arena(192), std::vector{slots}), key);
  EXPECT_NE(RatesKey("cpu (2 threads)", arena(192), std::vector{slots}), key);
  EXPECT_NE(RatesKey("cpu", arena(224), std::vector{slots}), key);
  EXPECT_NE(RatesKey("cpu", arena(192), std::vector{slots, slots}), key);
  for (const RatedWorker& worker : {grpc, none, other}) EXPECT_NE(RatesKey("cpu", arena(192), std::vector{worker}), key);
}

}  // namespace
}  // namespace ferry
