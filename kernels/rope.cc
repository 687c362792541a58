#include "kernels/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ferry {

std::vector<double> RopeFrequencies(const RopeConfig& config) {
  const double dims = static_cast<double>(config.num_dims);
  std::vector<double> frequencies(config.num_dims / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(config.freq_base, -2 * static_cast<double>(i) / dims);
  }
  if (config.yarn_factor == 1 || config.yarn_original_context <= 0) return frequencies;

  // Index of the pair that makes `turns` turns over the original context; not a whole number.
  const auto pair_with = [&](double turns) {
    return dims * std::log(static_cast<double>(config.yarn_original_context) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(config.freq_base));
  };
  double first = pair_with(config.yarn_beta_fast), last = pair_with(config.yarn_beta_slow);
  if (config.yarn_whole_dims) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0);
  last = std::min(last, dims - 1);
  if (first == last) last += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double slowed = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
    frequencies[i] *= (1 - slowed) + slowed / config.yarn_factor;
  }
  return frequencies;
}

}  // namespace ferry
