#include "kernels/cpu/cpu_peaks.h"

#if !defined(__AVX512VNNI__)

namespace ferry {
const PeakLoops* Avx512PeakLoops() { return nullptr; }
}  // namespace ferry

#else

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // see panels_avx512.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

namespace ferry {
namespace {

// Enough chains that none waits for itself: the instructions take four or five cycles and start once or twice a cycle.
constexpr int kChains = 12;

// Keeps the compiler from knowing a value: equal chains would become one, and constant products leave the loop.
template <typename Vector>
void Hide(Vector& value) {
  asm volatile("" : "+v"(value));
}

void Read(const std::byte* data, int64_t bytes) {
  __m512i sums[4] = {};
  for (int64_t at = 0; at < bytes; at += 256) {
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_xor_si512(sums[i], _mm512_loadu_si512(data + at + 64 * i));
  }
  volatile int32_t used = 0;
  for (const __m512i sum : sums) used = used ^ _mm512_cvtsi512_si32(sum);
}

int64_t Int8Dots(int64_t iterations) {
  __m512i sums[kChains] = {};
  for (__m512i& sum : sums) Hide(sum);
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm512_dpbusd_epi32(sums[chain], a, b);
    Hide(a), Hide(b);
  }
  volatile int32_t used = 0;
  for (const __m512i sum : sums) used = used ^ _mm512_cvtsi512_si32(sum);
  return int64_t{kChains} * 64 * 2;
}

int64_t F32Fmas(int64_t iterations) {
  __m512 sums[kChains] = {};
  for (__m512& sum : sums) Hide(sum);
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm512_fmadd_ps(a, b, sums[chain]);
    Hide(a), Hide(b);
  }
  volatile float used = 0;
  for (const __m512 sum : sums) used = used + _mm512_reduce_add_ps(sum);
  return int64_t{kChains} * 16 * 2;
}

__attribute__((target("avx512bf16"))) int64_t Bf16Dots(int64_t iterations) {
  __m512 sums[kChains] = {};
  for (__m512& sum : sums) Hide(sum);
  __m512i a = _mm512_set1_epi32(0x3F003F00), b = a;
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = _mm512_dpbf16_ps(sums[chain], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    Hide(a), Hide(b);
  }
  volatile float used = 0;
  for (const __m512 sum : sums) used = used + sum[0];
  return int64_t{kChains} * 32 * 2;
}

constexpr PeakLoops kLoops = {Read, Int8Dots, Bf16Dots, F32Fmas};
constexpr PeakLoops kLoopsWithoutBf16 = {Read, Int8Dots, nullptr, F32Fmas};

}  // namespace

const PeakLoops* Avx512PeakLoops() { return __builtin_cpu_supports("avx512bf16") ? &kLoops : &kLoopsWithoutBf16; }

}  // namespace ferry

#endif
