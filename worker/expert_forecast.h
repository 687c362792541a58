#pragma once

// Forecasts which experts of a layer a step will use, and so which are worth copying before the layer is routed. Pure
// bookkeeping: no device, no clock.
//
// An expert that took a share s of the rows so far is used by a step of n rows with probability 1 - (1 - s)^n. Experts above
// kCertainUse (common/expert_plan.h) are copied as far as slots allow, since few of these copies are wasted. Experts above
// kLikely are copied only while the link would be idle, between the last copy of one layer and the routing of the next; their
// number follows how many arrived in that gap before. Experts with fewer rows than recent plans found worth a copy are left to
// the host, which needs work while the link copies. For a layer without a history, the coverage of the layer before it decides.

#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

class ExpertForecast {
 public:
  static constexpr double kLikely = 0.4;

  ExpertForecast(int64_t first_layer, int64_t end_layer, int64_t num_experts);

  // Records the routing of a layer: how many of `rows` rows went to each expert.
  void Learn(int64_t layer, int64_t rows, std::span<const int32_t> tokens);

  struct Candidates {
    std::vector<int32_t> experts;  // most likely first, ties to the lower id
    int64_t num_certain = 0;       // this many at the front are above kCertainUse, the rest above kLikely
  };
  // The experts that can expect at least `min_tokens` of `rows` rows. Empty without a history, or for fewer than
  // kMinRowsToForecast rows: these use few experts, and none is certain.
  Candidates For(int64_t layer, int64_t rows, int64_t min_tokens) const;

  // Records what TokensWorthACopy (common/expert_plan.h) says of a layer's plan.
  void LearnPlan(int64_t rows, int64_t worth_tokens);
  // The fewest tokens worth a copy, by the last plan of a step of about that many rows; 0: unknown.
  int64_t worth_tokens(int64_t rows) const;

  // How many merely likely experts to copy at once.
  int64_t budget() const { return budget_; }
  // Records a gap: `started` merely likely experts were asked for, and `arrived` of them were in their slots at the routing.
  void LearnGap(int64_t started, int64_t arrived);

 private:
  struct Layer {
    double rows = 0;             // a sum that each step halves first, so that recent steps weigh most
    std::vector<double> tokens;  // the same sum of each expert's rows
  };
  const int64_t first_layer_;
  const int64_t num_experts_;
  std::vector<Layer> layers_;
  int64_t last_rows_ = 0;     // rows of the last routing recorded
  double last_coverage_ = 0;  // the share of experts that it used
  int64_t budget_ = 2;
  int64_t planned_rows_ = 0;  // rows of the last plan recorded
  int64_t worth_tokens_ = 0;
};

}  // namespace ferry
