#pragma once

// Rotary position embedding of the CPU backend.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/model/model_config.h"

namespace ferry {

// Rotates the first dimensions of a head by the angles of a row's position; in place where in is out.
inline void Rotate(const RopeConfig& rope, const std::vector<float>& cosines, const std::vector<float>& sines, const float* x,
                   int64_t head_dim, float* out) {
  const int64_t half = static_cast<int64_t>(cosines.size());
  if (rope.neighbours) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = a * cosines[i] - b * sines[i];
      out[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
  } else {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      out[i] = a * cosines[i] - b * sines[i];
      out[i + half] = b * cosines[i] + a * sines[i];
    }
  }
  for (int64_t i = 2 * half; i < head_dim; ++i) out[i] = x[i];
}

// The cosines and sines of a row's position, one for each frequency.
inline void AnglesOf(const RopeConfig& rope, const std::vector<double>& frequencies, int64_t position,
                     std::vector<float>& cosines, std::vector<float>& sines) {
  cosines.resize(frequencies.size()), sines.resize(frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    cosines[i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
    sines[i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
  }
}

}  // namespace ferry
