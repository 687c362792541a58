#pragma once

// Compares numbers so that a NaN never passes: places of NaN and infinity first, then differences.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

// Whether `got` has NaN and infinities (of the same sign) where `want` has them and everywhere else
// |got - want| <= absolute + relative * |want|. The message names the first place that differs, the worst one and the count.
template <typename Got, typename Want>
testing::AssertionResult CloseSpans(std::span<const Got> got, std::span<const Want> want, double absolute, double relative) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << "there are " << got.size() << " numbers, want " << want.size();
  }
  for (size_t i = 0; i < want.size(); ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    const bool same = std::isnan(w) ? std::isnan(g) : std::isinf(w) ? g == w : std::isfinite(g);
    if (!same) return testing::AssertionFailure() << "[" << i << "] is " << g << ", want " << w;
  }
  int64_t num_far = 0;
  size_t first = 0, worst = 0;
  double worst_excess = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    if (!std::isfinite(w)) continue;
    const double difference = std::abs(g - w), allowed = absolute + relative * std::abs(w);
    if (difference <= allowed) continue;
    if (num_far++ == 0) first = i;
    if (!(difference - allowed <= worst_excess)) worst_excess = difference - allowed, worst = i;
  }
  if (num_far == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << num_far << " of " << want.size() << " differ; the first [" << first << "] is "
                                     << got[first] << ", want " << want[first] << "; the worst [" << worst << "] is "
                                     << got[worst] << ", want " << want[worst] << " (within " << absolute << " + " << relative
                                     << " * |want|)";
}

template <typename Got, typename Want>
testing::AssertionResult Close(const std::vector<Got>& got, const std::vector<Want>& want, double absolute, double relative = 0) {
  return CloseSpans(std::span<const Got>(got), std::span<const Want>(want), absolute, relative);
}

// sqrt(sum (got - want)^2 / sum want^2): one number for the error of a whole result. NaN when either holds one.
template <typename Got, typename Want>
double RelativeRmsError(std::span<const Got> got, std::span<const Want> want) {
  double error = 0, total = 0;
  for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    error += difference * difference;
    total += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  if (error == 0) return 0;
  return std::sqrt(error / total);
}

}  // namespace ferry
