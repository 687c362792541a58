#pragma once

// How many times as long as its measured rates say a place takes in real steps: one factor, by which plans correct the rates.
//
// The shares of one step count as one sample: what they took together over what the rates say of them. The factor is the median
// of the last five samples, and the measurement stands for those that have not come. So one slow step changes nothing, nor do
// two, and three say that the machine has changed. A running mean would follow a single slow step, even a mean of clipped
// samples: a step has a share in each of dozens of layers.
//
// A place to which plans give nothing shows nothing. So after some steps without a share the factor goes half of the way back,
// and the place is tried again.
//
// Pure bookkeeping: no clock, no lock.

#include <array>
#include <cstdint>
#include <span>

#include "common/expert_plan.h"
#include "common/model/expert_layout.h"
#include "common/shm/expert_mailbox.h"
#include "kernels/expert_seconds.h"

namespace ferry {

class RateCorrection {
 public:
  // Of a factor, and of its reciprocal: a place that seems slower than that is tried now and then, and found out again.
  static constexpr double kLargest = 8;
  static constexpr int kSamples = 5, kMedian = kSamples / 2;
  // Steps without a share, until the factor goes half of the way back.
  static constexpr int kPatience = 16;
  // The threads of an engine take 10 to 30 us to begin: shares that should take less than this say nothing about rates.
  static constexpr double kLeastSeconds = 50e-6;

  explicit RateCorrection(double least_seconds = kLeastSeconds) : least_seconds_(least_seconds) {}

  // One share of the step took `measured` seconds, where the rates that were measured say `predicted`. Without effect: a
  // prediction below least_seconds, times that are no numbers above zero.
  void Add(double predicted, double measured);
  // What was added since the last call was one step's.
  void EndStep();
  // Half of the way back to 1, by its logarithm.
  void Relax();

  // 1 / kLargest to kLargest.
  double factor() const { return factor_; }
  // Steps have shown enough to move the factor.
  bool known() const { return num_samples_ > kMedian; }

 private:
  void FindMedian();

  double least_seconds_;
  double predicted_ = 0, measured_ = 0;     // of the step in progress
  std::array<double, kSamples> logs_ = {};  // of the samples, the next one at next_
  int next_ = 0, num_samples_ = 0, idle_steps_ = 0;
  double factor_ = 1;
};

// Corrections of one place: steps of few rows (decode) read records while no link copies beside them, larger ones do not.
class StepCorrections {
 public:
  explicit StepCorrections(double least_seconds = RateCorrection::kLeastSeconds) : few_(least_seconds), many_(least_seconds) {}
  RateCorrection& Of(int64_t num_rows) { return num_rows <= kMaxRowsWithoutPlan ? few_ : many_; }
  const RateCorrection& Of(int64_t num_rows) const { return num_rows <= kMaxRowsWithoutPlan ? few_ : many_; }
  void Relax() {
    few_.Relax();
    many_.Relax();
  }
  // For people: the two factors; 0: steps have not shown it.
  struct Factors {
    double few_rows = 0, many_rows = 0;
  };
  Factors factors() const {
    return {.few_rows = few_.known() ? few_.factor() : 0, .many_rows = many_.known() ? many_.factor() : 0};
  }

 private:
  RateCorrection few_, many_;
};

// Seconds that an engine takes for these experts, one after the other; 0: its rates are not known.
double PredictedSeconds(const ExpertRates& rates, const ExpertLayout& layout, std::span<const ActivatedExpert> uses);

}  // namespace ferry
