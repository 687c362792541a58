#include "kernels/cpu/cpu_peaks.h"

#if !defined(__AVX2__)

namespace ferry {
const PeakLoops* Avx2PeakLoops() { return nullptr; }
}  // namespace ferry

#else

#include <immintrin.h>

namespace ferry {
namespace {

constexpr int kChains = 10;  // of sixteen registers

// See cpu_peaks_avx512.cc.
template <typename Vector>
void Hide(Vector& value) {
  asm volatile("" : "+x"(value));
}

void Read(const std::byte* data, int64_t bytes) {
  __m256i sums[4] = {};
  for (int64_t at = 0; at < bytes; at += 128) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + at + 32 * i)));
    }
  }
  volatile int32_t used = 0;
  for (const __m256i sum : sums) used = used ^ _mm256_extract_epi32(sum, 0);
}

int64_t Int8Dots(int64_t iterations) {
  __m256i sums[kChains] = {};
  for (__m256i& sum : sums) Hide(sum);
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 10
    for (int chain = 0; chain < kChains; ++chain) {
      Hide(a), Hide(b);  // each product is made anew
      sums[chain] = _mm256_add_epi32(sums[chain], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  volatile int32_t used = 0;
  for (const __m256i sum : sums) used = used ^ _mm256_extract_epi32(sum, 0);
  return int64_t{kChains} * 32 * 2;
}

int64_t F32Fmas(int64_t iterations) {
  __m256 sums[kChains] = {};
  for (__m256& sum : sums) Hide(sum);
  __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 10
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm256_fmadd_ps(a, b, sums[chain]);
    Hide(a), Hide(b);
  }
  volatile float used = 0;
  for (const __m256 sum : sums) used = used + _mm256_cvtss_f32(sum);
  return int64_t{kChains} * 8 * 2;
}

constexpr PeakLoops kLoops = {Read, Int8Dots, nullptr, F32Fmas};

}  // namespace

const PeakLoops* Avx2PeakLoops() { return &kLoops; }

}  // namespace ferry

#endif
