#include <cstring>

#include "kernels/cpu/cpu_peaks.h"

namespace ferry {
namespace {

void Read(const std::byte* data, int64_t bytes) {
  uint64_t sums[32] = {};
  for (int64_t at = 0; at < bytes; at += 256) {
    uint64_t words[32];
    std::memcpy(words, data + at, sizeof(words));
    for (int i = 0; i < 32; ++i) sums[i] ^= words[i];
  }
  volatile uint64_t used = 0;
  for (const uint64_t sum : sums) used = used + sum;
}

int64_t F32Fmas(int64_t iterations) {
  float sums[32];
  for (int i = 0; i < 32; ++i) sums[i] = static_cast<float>(i);  // unlike each other, or one would do for all
  volatile float source = 0.5f;
  const float a = source;
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& sum : sums) sum = sum * a + a;
  }
  volatile float used = 0;
  for (const float sum : sums) used = used + sum;
  return 32 * 2;
}

constexpr PeakLoops kLoops = {Read, nullptr, nullptr, F32Fmas};

}  // namespace

const PeakLoops* PortablePeakLoops() { return &kLoops; }

}  // namespace ferry
