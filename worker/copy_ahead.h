#pragma once

// Which experts of a layer are worth copying before its routing is known. Pure bookkeeping: no device, no clock.
//
// An expert that took a share s of the rows so far is used by a pass of n rows with probability 1 - (1 - s)^n. Experts above
// kCertain are copied as far as slots allow: the waste is small. Experts that are merely likely are copied only into time in
// which the link would stand idle, between the last copy of one layer and the routing of the next: their number follows what
// arrived in that gap before. An expert of fewer rows than the plans lately had computed here is left to the host, which has to
// have something to do while the link runs: the plan of one layer says what is worth a copy in the next. Of a layer that was
// never seen, only the coverage of the layer before it says something.

#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

class CopyAhead {
 public:
  static constexpr double kCertain = 0.9;
  static constexpr double kLikely = 0.4;
  static constexpr int64_t kMinRows = 9;  // smaller steps route first: few experts are used and none is certain

  CopyAhead(int64_t first_layer, int64_t end_layer, int64_t num_experts);

  // What the routing of a layer turned out to be: tokens of each expert, for `rows` rows.
  void Learn(int64_t layer, int64_t rows, std::span<const int32_t> tokens);

  struct Candidates {
    std::vector<int32_t> experts;  // most likely first, ties to the lower id
    int64_t num_certain = 0;       // the first so many are above kCertain, the rest above kLikely
  };
  // Those that may be expected to get at least `min_tokens` rows. Empty when nothing is known, or for fewer than kMinRows rows.
  Candidates For(int64_t layer, int64_t rows, int64_t min_tokens) const;

  // What the plan of a layer says, as TokensWorthACopy gives it (common/expert_plan.h).
  void LearnPlan(int64_t rows, int64_t worth_tokens);
  // The fewest tokens worth a copy, by the last plan of a step about as large; 0: not known.
  int64_t worth_tokens(int64_t rows) const;

  // How many merely likely experts to start at once.
  int64_t budget() const { return budget_; }
  // `started` of them were, `arrived` had come when the routing was known.
  void LearnGap(int64_t started, int64_t arrived);

 private:
  struct Layer {
    double rows = 0;             // recent passes weigh most: halved with each
    std::vector<double> tokens;  // of each expert, halved alike
  };
  const int64_t first_layer_;
  const int64_t num_experts_;
  std::vector<Layer> layers_;
  int64_t last_rows_ = 0;     // of the routing learnt last
  double last_coverage_ = 0;  // and which share of the experts it used
  int64_t budget_ = 2;
  int64_t planned_rows_ = 0;  // of the plan learnt last
  int64_t worth_tokens_ = 0;
};

}  // namespace ferry
