#pragma once

// Says how far the loading of experts is, once a second.

#include <algorithm>

#include "common/deadline.h"
#include "common/log.h"
#include "coordinator/experts/expert_store.h"

namespace ferry {

class LoadReporter {
 public:
  void operator()(const LoadProgress& progress) {
    if (since_word_.Elapsed() < absl::Seconds(1) || progress.bytes_total == 0) return;
    since_word_.Restart();
    constexpr double kGiga = 1e9;
    const double rate = static_cast<double>(progress.bytes_done) / loading_.Seconds();
    const double left = static_cast<double>(progress.bytes_total - progress.bytes_done) / std::max(rate, 1.0);
    spdlog::info("loading experts: {:.0f} % of {:.2f} GB, {:.2f} GB/s, {:.0f} s left",
                 100.0 * static_cast<double>(progress.bytes_done) / static_cast<double>(progress.bytes_total),
                 static_cast<double>(progress.bytes_total) / kGiga, rate / kGiga, left);
  }

 private:
  const Stopwatch loading_;
  Stopwatch since_word_;
};

}  // namespace ferry
