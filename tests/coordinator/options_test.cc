#include "coordinator/options.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(ListenAddress, ReadsHostAndPort) {
  ASSERT_OK_AND_ASSIGN(const ListenAddress address, ParseListenAddress("127.0.0.1:81", 8090));
  EXPECT_EQ(address.host, "127.0.0.1");
  EXPECT_EQ(address.port, 81);
  EXPECT_TRUE(address.loopback);
}

TEST(ListenAddress, TakesThePortThatIsUsual) {
  EXPECT_EQ(ParseListenAddress("localhost", 8090)->ToString(), "localhost:8090");
  EXPECT_EQ(ParseListenAddress("[::1]", 8090)->ToString(), "[::1]:8090");
  EXPECT_EQ(ParseListenAddress("[::1]:0", 8090)->port, 0);
}

TEST(ListenAddress, KnowsWhoCanReachIt) {
  EXPECT_TRUE(ParseListenAddress("[::1]", 1)->loopback);
  EXPECT_TRUE(ParseListenAddress("127.1.2.3", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("0.0.0.0", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("[::]:80", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("10.0.0.1", 1)->loopback);
}

TEST(ListenAddress, RefusesWhatIsNone) {
  for (const char* text : {"", ":80", "host:", "host:x", "host:65536", "host:-1", "::1", "host:1x"}) {
    EXPECT_THAT(ParseListenAddress(text, 1), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

TEST(CoordinatorOptions, NamesTheFlagThatIsWrong) {
  const CoordinatorOptions good{.model = "model.gguf"};
  ASSERT_OK(CheckOptions(good));
  const auto refuses = [&](const char* flag, auto change) {
    CoordinatorOptions options = good;
    change(options);
    EXPECT_THAT(CheckOptions(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(flag)));
  };
  refuses("-m", [](auto& o) { o.model.clear(); });
  refuses("--workers", [](auto& o) { o.placement.num_workers = 0; });
  refuses("--backend", [](auto& o) { o.backend = "cuda"; });
  refuses("--expert-transport", [](auto& o) { o.expert_transport = "nccl"; });
  refuses("--threads", [](auto& o) { o.threads = -1; });
  refuses("--queue", [](auto& o) { o.max_queued = -1; });
  refuses("--heartbeat-timeout", [](auto& o) { o.heartbeat_timeout = o.heartbeat_interval; });
  refuses("--heartbeat-interval", [](auto& o) { o.heartbeat_interval = absl::ZeroDuration(); });
  refuses("--step-timeout", [](auto& o) { o.step_timeout = absl::ZeroDuration(); });
  refuses("--load-timeout", [](auto& o) { o.load_timeout = -absl::Seconds(1); });
}

}  // namespace
}  // namespace ferry
