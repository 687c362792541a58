#pragma once

#include <cstdint>
#include <vector>

#include "common/model/make_model.h"
#include "common/model/model_tensors.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/planning/prediction_input.h"
#include "coordinator/planning/routing_probabilities.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

// What predictions need of a made model.
class PredictedModelTest : public ::testing::Test {
 protected:
  void Make(const MakeModelOptions& options) {
    ASSERT_OK_AND_ASSIGN(bytes_, MakeModelBytes(options));
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Parse(bytes_));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(file));
    ASSERT_OK_AND_ASSIGN(sizes_, ModelSizesOf(file, config_));
    ASSERT_OK_AND_ASSIGN(arena_, ArenaLayoutOf(file, config_));
    ASSERT_OK_AND_ASSIGN(routing_, RoutingProbabilities(file, config_));
  }

  std::vector<std::byte> bytes_;
  ModelConfig config_;
  ModelSizes sizes_;
  ArenaLayout arena_;
  std::vector<std::vector<double>> routing_;
  Placement placement_;
};

// A model of 4 layers with 32 experts, 4 for each token, on a machine that the test makes up.
class PredictionTest : public PredictedModelTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(Make({.layers = 4, .experts = 32, .top_k = 4, .router_bias_spread = 1.5}));
    Place(1, 2048);
    record_bytes_ = static_cast<double>(arena_.layer(0).bytes);
  }
  void Place(int64_t num_workers, int64_t batch) {
    ASSERT_OK_AND_ASSIGN(
        placement_, PlanPlacement(config_, sizes_, {.num_workers = num_workers, .context_tokens = 16384, .batch_tokens = batch}));
  }
  // A machine whose copies take a second an expert, and whose host and GPUs take next to nothing, unless changed.
  PredictionInput SlowLink(int64_t slots) {
    const ExpertRates fast = {.read_bytes_per_second = 1e18, .flops_per_second = 1e20};
    MachineRates rates{.host = fast, .host_beside_links = fast};
    for (size_t w = 0; w < placement_.workers.size(); ++w) {
      rates.workers.push_back(
          {.link = {.alone = 2 * record_bytes_, .together = record_bytes_, .beside_host = record_bytes_}, .experts = fast});
    }
    return {.config = config_,
            .sizes = sizes_,
            .arena = arena_,
            .placement = placement_,
            .routing = routing_,
            .rates = rates,
            .slots = std::vector<int64_t>(placement_.workers.size(), slots),
            .gpu = true};
  }
  // The last worker is on another host, a second of a row's bytes away.
  static void PutLastElsewhere(double exchange_seconds, PredictionInput* input) {
    input->networks.resize(input->placement.workers.size());
    input->networks.back() = {.host = 1,
                              .exchange_seconds = exchange_seconds,
                              .bytes_per_second = static_cast<double>(input->config.n_embd) * sizeof(float)};
  }

  double record_bytes_ = 0;
};

}  // namespace ferry
