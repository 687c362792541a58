// The file of `ferry plan --hosts`: what it says, and what is said of mistakes in it.

#include "cli/described_hosts.h"

#include "absl/strings/str_replace.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kTwoHosts = R"({
  // between any two of them
  "network": {"rate": "1.2GB/s", "exchange_us": 60},
  "hosts": [
    {"name": "head", "address": "192.0.2.1", "memory": "128GiB", "cores": 16, "read": "85GB/s", "flops": 1.5e12,
     "gpus": ["24GiB", "16GiB"], "link": "25GB/s", "gpu_flops": 200e12},
    {"name": "second",
     "memory": "64GiB", "read": "60e9", "flops": 1e12,
     "exchange_us": 25}
  ]
})";

// kTwoHosts with `from` replaced by `to`.
absl::StatusOr<std::vector<DescribedHost>> With(const std::string& from, const std::string& to) {
  return ParseHosts(absl::StrReplaceAll(kTwoHosts, {{from, to}}));
}

TEST(DescribedHosts, HaveTheNetworksRatesUnlessTheySayOthers) {
  ASSERT_OK_AND_ASSIGN(const std::vector<DescribedHost> hosts, ParseHosts(kTwoHosts));
  ASSERT_EQ(hosts.size(), 2u);
  EXPECT_EQ(hosts[0].address, "192.0.2.1");
  EXPECT_EQ(hosts[0].memory_bytes, int64_t{128} << 30);
  EXPECT_EQ(hosts[0].cores, 16);
  EXPECT_EQ(hosts[0].read, 85e9);
  EXPECT_EQ(hosts[0].flops, 1.5e12);
  EXPECT_THAT(hosts[0].gpu_bytes, ElementsAre(int64_t{24} << 30, int64_t{16} << 30));
  EXPECT_EQ(hosts[0].link, 25e9);
  EXPECT_EQ(hosts[0].gpu_flops, 200e12);
  EXPECT_EQ(hosts[1].address, "second") << "its name";
  EXPECT_EQ(hosts[1].read, 60e9);
  EXPECT_EQ(hosts[1].network_rate, 1.2e9);
  EXPECT_DOUBLE_EQ(hosts[1].exchange_seconds, 25e-6);
}

struct Mistake {
  const char* from;
  const char* to;
  const char* said;  // the line, and what would be right
};
class DescribedHostsMistake : public ::testing::TestWithParam<Mistake> {};
TEST_P(DescribedHostsMistake, IsNamedWithItsLine) {
  const auto& [from, to, said] = GetParam();
  EXPECT_THAT(With(from, to), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(said))) << to;
}
INSTANTIATE_TEST_SUITE_P(
    All, DescribedHostsMistake,
    ::testing::Values(
        Mistake{"\"64GiB\"", "64", "line 8: \"memory\" is 64, want a size such as \"24GiB\""},
        Mistake{"\"memory\": \"64GiB\", ", "", "line 7: \"memory\" is missing, want for example"},
        Mistake{"\"60e9\"", "\"fast\"", "line 8: \"read\" is \"fast\", want bytes a second such as \"25GB/s\""},
        Mistake{"\"read\": \"60e9\", ", "", "line 7: \"read\" is missing"},
        Mistake{", \"flops\": 1e12", "", "line 7: \"flops\" is missing"},
        Mistake{"1.5e12", "-1", "line 5: \"flops\" is -1, want a number above 0"},
        Mistake{"\"exchange_us\": 25", "\"exchange_us\": 0", "line 9: \"exchange_us\" is 0"},
        Mistake{"\"exchange_us\": 25", "\"delay\": 0", "line 9: \"delay\" is not known here, want one of name, address"},
        Mistake{"\"exchange_us\": 25", "\"name\": \"x\"", "line 9: \"name\" is there twice"},
        Mistake{"\"second\"", "\"head\"", "line 7: \"name\" is that of another host"},
        Mistake{"\"name\": \"second\",", "", "line 7: \"name\" is missing"},
        Mistake{"[\"24GiB\", \"16GiB\"]", "2", "line 6: \"gpus\" want a list"},
        Mistake{"\"16GiB\"", "16", "line 6: \"gpus\" is 16, want a size"},
        Mistake{"\"gpus\": [\"24GiB\", \"16GiB\"], ", "", "line 6: \"link\" is of GPUs, and this host has no \"gpus\""},
        Mistake{"\"exchange_us\": 25", "\"gpu_flops\": 1e12", "line 9: \"gpu_flops\" is of GPUs"},
        Mistake{"\"link\": \"25GB/s\"", "\"link\": 25", "line 6: \"link\" is 25, want bytes a second"},
        Mistake{"\"cores\": 16", "\"cores\": 2.5", "line 5: \"cores\" is 2.5, want a whole number"},
        Mistake{"\"cores\": 16", "\"cores\": 0", "line 5: \"cores\" is 0, want a whole number"},
        Mistake{"\"exchange_us\": 25", "\"cpu_worker\": 1", "line 9: \"cpu_worker\" is 1, want true or false"},
        Mistake{"\"exchange_us\": 25", "\"gpus\": [\"1GiB\"], \"cpu_worker\": true",
                "line 9: \"cpu_worker\" is for a host without \"gpus\""},
        Mistake{"\"gpus\": [\"24GiB\", \"16GiB\"], \"link\": \"25GB/s\", \"gpu_flops\": 200e12", "\"cpu_worker\": true",
                "line 6: \"cpu_worker\" is for other hosts"},
        Mistake{"\"rate\": \"1.2GB/s\", ", "", "line 7: \"network_rate\" is missing"},
        Mistake{"{\"rate\": \"1.2GB/s\", \"exchange_us\": 60}", "5", "line 3: \"network\" want {"},
        Mistake{"\"hosts\"", "\"machines\"", "line 4: \"machines\" is not known here, want one of hosts, network"},
        Mistake{"\"cores\": 16,", "\"cores\": 16", "line 5: this is no JSON"}));

TEST(DescribedHosts, AreRefusedWhereThereAreNone) {
  for (const char* text : {"", "[]", "{}", R"({"hosts": []})", R"({"hosts": [1]})", R"({"hosts": {}})"}) {
    EXPECT_THAT(ParseHosts(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 1: "))) << text;
  }
  EXPECT_THAT(ParseHosts(std::string(60000, '[')), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseHosts(std::string(20000, '[') + std::string(20000, ']')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nested too deep")));
  EXPECT_THAT(ReadHosts("/no/such/file"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("--hosts: ")));
}

}  // namespace
}  // namespace ferry
