#include "worker/expert_forecast.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/expert_plan.h"

namespace ferry {
namespace {

// Whether a step of `learnt` rows says something about one of `rows`; steps of other sizes use experts in other shares.
bool AlikeInSize(int64_t rows, int64_t learnt) { return learnt > 0 && rows >= learnt / 2 && rows <= learnt * 2; }

}  // namespace

ExpertForecast::ExpertForecast(int64_t first_layer, int64_t end_layer, int64_t num_experts)
    : first_layer_(first_layer), num_experts_(num_experts), layers_(end_layer - first_layer) {}

void ExpertForecast::Learn(int64_t layer, int64_t rows, std::span<const int32_t> tokens) {
  if (rows < kMinRowsToForecast) return;
  Layer& learnt = layers_[layer - first_layer_];
  learnt.tokens.resize(num_experts_);
  learnt.rows = learnt.rows / 2 + static_cast<double>(rows);
  int64_t used = 0;
  for (int64_t i = 0; i < num_experts_; ++i) {
    learnt.tokens[i] = learnt.tokens[i] / 2 + tokens[i];
    used += tokens[i] > 0;
  }
  last_rows_ = rows;
  last_coverage_ = static_cast<double>(used) / static_cast<double>(num_experts_);
}

ExpertForecast::Candidates ExpertForecast::For(int64_t layer, int64_t rows, int64_t min_tokens) const {
  Candidates candidates;
  if (rows < kMinRowsToForecast) return candidates;
  const Layer& learnt = layers_[layer - first_layer_];
  std::vector<double> unused(num_experts_, 1);  // the probability that no row uses it; orders even experts near certainty
  if (learnt.rows > 0) {
    for (int64_t i = 0; i < num_experts_; ++i) {
      // Half a token more than was seen, since an expert that was never used may be used.
      const double share = std::min(1.0, (learnt.tokens[i] + 0.5) / (learnt.rows + 1));
      const bool worth = share * static_cast<double>(rows) >= static_cast<double>(min_tokens);
      unused[i] = worth ? std::pow(1 - share, static_cast<double>(rows)) : 1;
    }
  } else if (AlikeInSize(rows, last_rows_)) {
    std::fill(unused.begin(), unused.end(), 1 - last_coverage_);
  }
  for (int32_t i = 0; i < num_experts_; ++i) {
    if (unused[i] <= 1 - kLikely) candidates.experts.push_back(i);
    candidates.num_certain += unused[i] <= 1 - kCertainUse;
  }
  std::stable_sort(candidates.experts.begin(), candidates.experts.end(),
                   [&](int32_t a, int32_t b) { return unused[a] < unused[b]; });
  return candidates;
}

void ExpertForecast::LearnPlan(int64_t rows, int64_t worth_tokens) {
  planned_rows_ = rows;
  worth_tokens_ = worth_tokens;
}

int64_t ExpertForecast::worth_tokens(int64_t rows) const { return AlikeInSize(rows, planned_rows_) ? worth_tokens_ : 0; }

void ExpertForecast::LearnGap(int64_t started, int64_t arrived) {
  if (started == 0) return;
  // If all had arrived, the link was idle after them and can take twice as many. Otherwise it takes those that arrived and one
  // more.
  if (arrived >= started) {
    if (started >= budget_) budget_ = std::min<int64_t>(budget_ * 2, num_experts_);
  } else {
    budget_ = arrived + 1;
  }
}

}  // namespace ferry
