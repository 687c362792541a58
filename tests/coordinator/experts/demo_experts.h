#pragma once

// The bundled model's experts, an engine, and an exchange with worker 0, who has the first half of the layers.

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/expert_exchange.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

class DemoExperts : public ::testing::Test {
 protected:
  static constexpr uint64_t kIncarnation = 77;  // of worker 0

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(file));
    ASSERT_OK_AND_ASSIGN(pool_, ThreadPool::Create({.num_threads = 1, .pin = false}));
    ASSERT_OK_AND_ASSIGN(store_, ExpertStore::Load(file, config_, *pool_, [](const LoadProgress&) {}));
    ASSERT_OK_AND_ASSIGN(ops_, CreateOps({.kind = "cpu", .num_threads = 2, .pin_threads = false}));
    engine_ = std::make_unique<ExpertEngine>(store_.get(), ops_.get(), config_.expert.glu, config_.n_embd);
    const PlannerRates rates = {.host = {.read_bytes_per_second = 1e9, .flops_per_second = 1e9}};
    ASSERT_OK_AND_ASSIGN(
        exchange_, ExpertExchange::Create(store_.get(), engine_.get(), rates, "ferry-exchange-test-" + std::to_string(getpid())));
    AddFirstPeer();
  }
  // Also a successor of worker 0, who has no mailbox yet.
  void AddFirstPeer() {
    exchange_->AddPeer({.worker = WorkerId(0),
                        .incarnation = Incarnation(kIncarnation),
                        .first_layer = 0,
                        .end_layer = 3,
                        .num_slots = 8,
                        .link_bytes_per_second = 100e9});
  }
  // A plan of layer 0.
  static ExpertRequest PlanOf(std::vector<ActivatedExpert> uses, int32_t num_rows = 500) {
    return {.kind = ExpertRequestKind::kPlan,
            .incarnation = kIncarnation,
            .step = 1,
            .layer = 0,
            .num_rows = num_rows,
            .uses = std::move(uses)};
  }
  // Two rows; row 0 goes to experts 3 and 5, row 1 to 5.
  static ExpertRequest TwoRows() {
    return {.kind = ExpertRequestKind::kCompute,
            .incarnation = kIncarnation,
            .step = 1,
            .layer = 2,
            .num_rows = 2,
            .uses = {{.expert = 3, .tokens = 1}, {.expert = 5, .tokens = 2}},
            .entry_rows = {0, 0, 1}};
  }
  std::vector<float> Rows(int64_t count) const {
    std::vector<float> rows(count * config_.n_embd);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>((i * 2654435761u >> 16) % 1000) / 500.f - 1.f;
    return rows;
  }

  ModelConfig config_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<ExpertEngine> engine_;
  std::unique_ptr<ExpertExchange> exchange_;
};

}  // namespace ferry
