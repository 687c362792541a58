#include "coordinator/planning/rates_probe.h"

#include <atomic>

#include "absl/time/clock.h"
#include "common/thread_pool.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

const MessageProbe kMessage = [](const ProbedWorker&) -> absl::StatusOr<double> { return 80e-6; };

class RatesProbeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = 1, .pin = false}));
    ASSERT_OK_AND_ASSIGN(store_, ExpertStore::Load(file, config, *pool, [](const LoadProgress&) {}));
    ASSERT_OK_AND_ASSIGN(ops_, CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}));
  }
  static ProbedWorker Worker(int32_t id, bool has_slots) {
    return {.id = WorkerId(id),
            .incarnation = Incarnation(1),
            .address = "",
            .has_slots = has_slots,
            .own = {.link = {.alone = has_slots ? 9e9 : 0}}};
  }

  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Ops> ops_;
};

TEST_F(RatesProbeTest, MeasuresAllLinksAtOnceThenBesideTheHost) {
  std::atomic<int> running{0}, most{0}, calls{0};
  const auto link = [&](const ProbedWorker& worker, absl::Duration time) -> absl::StatusOr<double> {
    EXPECT_NE(worker.id, WorkerId(1)) << "it has no slots";
    const int now = ++running;
    for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
    }
    absl::SleepFor(time);
    --running;
    return ++calls <= 2 ? 5e9 : 4e9;
  };
  std::vector<ProbedWorker> workers = {Worker(0, true), Worker(1, false), Worker(2, true)};
  workers[2].shares_memory = true;
  ASSERT_OK_AND_ASSIGN(const MachineRates rates, ProbeRates(*ops_, *store_, workers, link, kMessage));
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(most, 2);
  ASSERT_EQ(rates.workers.size(), 3u);
  for (const int slots : {0, 2}) {
    EXPECT_EQ(rates.workers[slots].link, (LinkRates{.alone = 9e9, .together = 5e9, .beside_host = 4e9}));
    EXPECT_EQ(rates.workers[slots].link.Planned(), 4.5e9) << "the engine works for a part of the time";
  }
  EXPECT_EQ(rates.workers[1].link, LinkRates());
  for (const int messaged : {0, 1}) EXPECT_EQ(rates.workers[messaged].message_seconds, 80e-6);
  EXPECT_EQ(rates.workers[2].message_seconds, 0) << "its steps are no messages";
  EXPECT_GT(rates.host.read_bytes_per_second, 0);
  EXPECT_GT(rates.host_beside_links.flops_per_second, 0);
  EXPECT_NE(rates.host_beside_links, rates.host) << "it was measured again";
}

TEST_F(RatesProbeTest, NeedsNobodyWithoutSlots) {
  const auto link = [](const ProbedWorker&, absl::Duration) -> absl::StatusOr<double> { return Internal("asked"); };
  ASSERT_OK_AND_ASSIGN(const MachineRates rates, ProbeRates(*ops_, *store_, std::vector{Worker(0, false)}, link, kMessage));
  EXPECT_EQ(rates.host_beside_links, rates.host);
}

TEST_F(RatesProbeTest, NamesTheWorkerWhoseLinkFails) {
  const auto link = [](const ProbedWorker& worker, absl::Duration) -> absl::StatusOr<double> {
    if (worker.id == WorkerId(1)) return DeadlineExceeded("it hangs");
    return 1e9;
  };
  EXPECT_THAT(ProbeRates(*ops_, *store_, std::vector{Worker(0, true), Worker(1, true)}, link, kMessage),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("worker 1")));
}

}  // namespace
}  // namespace ferry
