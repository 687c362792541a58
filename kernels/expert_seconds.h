#pragma once

// How fast experts are computed, and the model of the time that one of them takes: what plans are made with.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace ferry {

// Operations a second of experts with so many rows each whose records come from memory, reading included. 0 is not known.
inline constexpr std::array<int64_t, 4> kCurveRows = {4, 16, 64, 256};
using ProductCurve = std::array<double, kCurveRows.size()>;

// How fast an engine computes experts, as far as it is known; 0 is not known.
struct ExpertRates {
  double read_bytes_per_second = 0;  // of records, one row each
  double flops_per_second = 0;       // many rows an expert; a product and its addition are two
  ProductCurve flops_at_rows = {};
  bool operator==(const ExpertRates&) const = default;
};

// The same engine when everything takes it `times` as long.
inline ExpertRates Slower(ExpertRates rates, double times) {
  rates.read_bytes_per_second /= times;
  rates.flops_per_second /= times;
  for (double& flops : rates.flops_at_rows) flops /= times;
  return rates;
}

// Seconds of an expert with `rows` rows, 1 or more; the first two rates are known. The engine reads the record, multiplies its
// first row meanwhile, and then the other rows. With a curve, the time lies on straight lines between the time of one row and the
// curve's points. Beyond the last point, further rows take what that point's rate says.
inline double ExpertSeconds(const ExpertRates& rates, double record_bytes, double flops_per_row, int64_t rows) {
  const double read = record_bytes / rates.read_bytes_per_second;
  if (!(rates.flops_at_rows.back() > 0)) return read + static_cast<double>(rows - 1) * flops_per_row / rates.flops_per_second;
  double before_rows = 1, before_seconds = read, slope = 0;
  for (size_t i = 0; i < rates.flops_at_rows.size(); ++i) {
    if (!(rates.flops_at_rows[i] > 0)) continue;
    const auto point_rows = static_cast<double>(kCurveRows[i]);
    // More rows never take less time, whatever a busy machine has measured.
    const double seconds = std::max(before_seconds, point_rows * flops_per_row / rates.flops_at_rows[i]);
    slope = (seconds - before_seconds) / (point_rows - before_rows);
    if (static_cast<double>(rows) <= point_rows) break;
    before_rows = point_rows, before_seconds = seconds, slope = flops_per_row / rates.flops_at_rows[i];
  }
  return before_seconds + (static_cast<double>(rows) - before_rows) * slope;
}

}  // namespace ferry
