// `ferry plan --hosts` on the bundled model: hosts that are not here.

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A file of a slow first host and `others`; the command that plans with it.
std::string PlanOf(const std::string& others, const std::string& head_memory = "8GiB") {
  // ctest runs tests beside each other.
  const std::string path =
      ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() + "-cluster.json";
  std::ofstream(path) << R"({"network": {"rate": "10GB/s", "exchange_us": 1},
"hosts": [{"name": "head", "address": "192.0.2.1", "memory": ")"
                      << head_memory << R"(", "cores": 4, "read": "100MB/s", "flops": 1e12}
)" << others << "]}\n";
  return "plan -p 64 --hosts " + path + kOfDemoModel;
}
std::string HostOf(const std::string& name, const std::string& read) {
  return R"(,{"name": ")" + name + R"(", "memory": "8GiB", "cores": 3, "read": ")" + read + R"(", "flops": 1e12})" + "\n";
}

TEST(PlanHosts, SaysWhatLiesWhereAndWhatToType) {
  const std::string plan = PlanOf(HostOf("second", "100MB/s") + HostOf("snail", "10MB/s"));
  const Output text = Ferry(plan);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("worker 0: layers 0-5"), HasSubstr("192 of 192 expert records"),
                              HasSubstr("left out: decode is predicted at")));
  EXPECT_THAT(text.out, AllOf(HasSubstr("on head: ferry cluster-init"), HasSubstr("on head: ferry serve -m "),
                              HasSubstr("--cluster-listen 192.0.2.1"),
                              HasSubstr("on second: ferry join 192.0.2.1 --token fj-... --experts --memory "),
                              HasSubstr("--threads 3"), Not(HasSubstr("on snail:"))));
  const nlohmann::json json = nlohmann::json::parse(Ferry(plan + " --json").out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_TRUE(json["hosts"][1]["used"]);
  EXPECT_FALSE(json["hosts"][2]["used"]);
  EXPECT_NEAR(json["hosts"][1]["decode_share"].get<double>(), 0.5, 0.05);
  EXPECT_NEAR(json["hosts"][0]["decode_share"].get<double>(), 0.5, 0.05);
  EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 1.15 * json["decode_first_host_alone"].get<double>());
}

TEST(PlanHosts, OneHostNeedsNoCluster) {
  const Output text = Ferry(PlanOf(""));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("on head: ferry serve"), Not(HasSubstr("cluster"))));
}

TEST(PlanHosts, SaysWhichHostHasTheMemoryThatTheFirstLacks) {
  const Output output = Ferry(PlanOf(HostOf("second", "100MB/s"), "1MiB"));
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, AllOf(HasSubstr("head, the first host of "), HasSubstr("second has that memory: make it the first")));
}

TEST(PlanHosts, NamesTheFileAndTheLineOfAMistake) {
  const Output output = Ferry(PlanOf(HostOf("second", "quick")));
  EXPECT_NE(output.exit_code, 0);
  EXPECT_THAT(output.err, HasSubstr("cluster.json: line 3: \"read\" is \"quick\""));
  EXPECT_THAT(Ferry(PlanOf("") + " --host-memory 1GiB").err, HasSubstr("leave out the flags that give them"));
}

}  // namespace
}  // namespace ferry
