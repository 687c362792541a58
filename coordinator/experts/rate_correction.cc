#include "coordinator/experts/rate_correction.h"

#include <algorithm>
#include <cmath>

namespace ferry {

void RateCorrection::Add(double predicted, double measured) {
  if (!(predicted >= least_seconds_) || !(predicted > 0) || !(measured > 0)) return;
  if (!std::isfinite(predicted) || !std::isfinite(measured)) return;
  predicted_ += predicted;
  measured_ += measured;
}

void RateCorrection::EndStep() {
  if (predicted_ > 0) {
    logs_[next_] = std::log(std::clamp(measured_ / predicted_, 1 / kLargest, kLargest));
    next_ = (next_ + 1) % kSamples;
    num_samples_ = std::min(num_samples_ + 1, kSamples);
    predicted_ = measured_ = 0;
    idle_steps_ = 0;
    FindMedian();
  } else if (++idle_steps_ == kPatience) {
    idle_steps_ = 0;
    Relax();
  }
}

void RateCorrection::Relax() {
  for (double& log : logs_) log /= 2;
  FindMedian();
}

void RateCorrection::FindMedian() {
  std::array<double, kSamples> sorted = logs_;
  std::sort(sorted.begin(), sorted.end());
  factor_ = std::exp(sorted[kMedian]);
}

double PredictedSeconds(const ExpertRates& rates, const ExpertLayout& layout, std::span<const ActivatedExpert> uses) {
  if (!(rates.read_bytes_per_second > 0) || !(rates.flops_per_second > 0)) return 0;
  const auto bytes = static_cast<double>(layout.bytes), flops = static_cast<double>(layout.flops_per_token());
  double seconds = 0;
  for (const ActivatedExpert& use : uses) seconds += ExpertSeconds(rates, bytes, flops, use.tokens);
  return seconds;
}

}  // namespace ferry
