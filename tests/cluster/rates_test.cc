// What a start measures, and what the next one finds.

#include <filesystem>
#include <fstream>

#include "tests/cluster/cluster.h"
#include "tests/testing/own_cache.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

proto::GetServerInfoResponse Started(bool probe = false) {
  ModelOptions options = DemoModel(2);
  options.vram_experts = "1MiB";
  options.probe = probe;
  options.keep_rates = true;  // machines that run tests are busy
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("", options);
  EXPECT_OK(client);
  const absl::StatusOr<proto::GetServerInfoResponse> info =
      client.ok() ? (*client)->ServerInfo() : absl::StatusOr<proto::GetServerInfoResponse>(client.status());
  EXPECT_OK(info);
  return info.value_or(proto::GetServerInfoResponse());
}

TEST(Rates, AreMeasuredOnceAndKeptForTheNextStart) {
  DemoModel(1);  // sets a cache for all tests here, which this test's own then replaces
  const OwnCache cache;
  const proto::GetServerInfoResponse first = Started();
  EXPECT_FALSE(first.host_experts().kept());
  EXPECT_GT(first.host_experts().measured_unix_seconds(), 0);
  for (const double rate :
       {first.host_experts().read_bytes_per_second(), first.host_experts().flops_per_second(),
        first.host_experts().read_bytes_per_second_beside_links(), first.host_experts().flops_per_second_beside_links()}) {
    EXPECT_GT(rate, 1e6);
  }
  ASSERT_EQ(first.workers_size(), 2);
  for (const proto::WorkerInfo& worker : first.workers()) {
    EXPECT_GT(worker.link_bytes_per_second(), 0);
    EXPECT_GT(worker.link_together_bytes_per_second(), 0);
    EXPECT_GT(worker.link_beside_host_bytes_per_second(), 0);
  }

  const proto::GetServerInfoResponse second = Started();
  EXPECT_TRUE(second.host_experts().kept());
  EXPECT_EQ(second.host_experts().flops_per_second_beside_links(), first.host_experts().flops_per_second_beside_links());
  EXPECT_EQ(second.workers(1).link_beside_host_bytes_per_second(), first.workers(1).link_beside_host_bytes_per_second());
  EXPECT_FALSE(Started(/*probe=*/true).host_experts().kept());

  for (const auto& entry : std::filesystem::directory_iterator(cache.folder() / "ferry")) std::ofstream(entry.path()) << "{";
  const proto::GetServerInfoResponse after_damage = Started();
  EXPECT_FALSE(after_damage.host_experts().kept());
  EXPECT_EQ(after_damage.state(), "serving");
}

}  // namespace
}  // namespace ferry
