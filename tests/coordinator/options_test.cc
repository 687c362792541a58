#include "coordinator/options.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

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

TEST(CoordinatorOptions, TakeASizeOfHostMemoryAsLlamaCppDoes) {
  EXPECT_EQ(*ParseCacheRam("8GiB"), int64_t{8} << 30);
  EXPECT_EQ(*ParseCacheRam("8192"), int64_t{8} << 30) << "MiB";
  EXPECT_EQ(*ParseCacheRam("0"), 0);
  EXPECT_EQ(*ParseCacheRam("auto"), -1);
  for (const char* bad : {"", "-2", "8GiBs", "99999999999999999999"}) {
    EXPECT_THAT(ParseCacheRam(bad), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

}  // namespace
}  // namespace ferry
