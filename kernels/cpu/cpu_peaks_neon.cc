#include "kernels/cpu/cpu_peaks.h"

#if !defined(__aarch64__)

namespace ferry {
const PeakLoops* NeonPeakLoops(CpuIsa) { return nullptr; }
}  // namespace ferry

#else

#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

namespace ferry {
namespace {

constexpr int kChains = 24;  // of 32 registers; see cpu_peaks_avx512.cc

template <typename Vector>
void Hide(Vector& value) {
  asm volatile("" : "+w"(value));
}

void Read(const std::byte* data, int64_t bytes) {
  uint32x4_t sums[8] = {};
  for (int64_t at = 0; at < bytes; at += 128) {
    for (int i = 0; i < 8; ++i) sums[i] = veorq_u32(sums[i], vld1q_u32(reinterpret_cast<const uint32_t*>(data + at + 16 * i)));
  }
  volatile uint32_t used = 0;
  for (const uint32x4_t sum : sums) used = used ^ vgetq_lane_u32(sum, 0);
}

// Runs step(chain, a, b) on kChains chains. Returns the operations of an iteration. A step has `ops`.
template <typename Sum, typename Operand, typename Step>
inline int64_t Chains(int64_t iterations, Sum zero, Operand a, Operand b, int64_t ops, const Step& step) {
  Sum sums[kChains];
  for (Sum& sum : sums) {
    sum = zero;
    Hide(sum);
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int chain = 0; chain < kChains; ++chain) step(sums[chain], a, b);
    Hide(a), Hide(b);
  }
  for (Sum& sum : sums) Hide(sum);
  return kChains * ops;
}

int64_t F32Fmas(int64_t iterations) {
  return Chains(iterations, vdupq_n_f32(0), vdupq_n_f32(0.5f), vdupq_n_f32(0.25f), 4 * 2,
                [](float32x4_t& sum, float32x4_t a, float32x4_t b) { sum = vfmaq_f32(sum, a, b); });
}
// As formats_neon.cc multiplies.
int64_t WideningDots(int64_t iterations) {
  return Chains(iterations, vdupq_n_s32(0), vdupq_n_s8(3), vdupq_n_s8(-2), 16 * 2, [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    Hide(a);  // each product is made anew
    sum = vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b));
  });
}
// By name, since one source holds instructions of several sets. Each writes sums that nothing else knows.
int64_t Sdots(int64_t iterations) {
  return Chains(iterations, vdupq_n_s32(0), vdupq_n_s8(3), vdupq_n_s8(-2), 16 * 2, [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  });
}
int64_t Smmlas(int64_t iterations) {
  return Chains(iterations, vdupq_n_s32(0), vdupq_n_s8(3), vdupq_n_s8(-2), 32 * 2, [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    asm(".arch armv8.2-a+i8mm\n\tsmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  });
}
int64_t Bfdots(int64_t iterations) {
  const uint16x8_t halves = vdupq_n_u16(0x3F00);  // 0.5
  return Chains(iterations, vdupq_n_f32(0), halves, halves, 8 * 2, [](float32x4_t& sum, uint16x8_t a, uint16x8_t b) {
    asm(".arch armv8.2-a+bf16\n\tbfdot %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(a), "w"(b));
  });
}

constexpr PeakLoops kNeon = {Read, WideningDots, nullptr, F32Fmas};
constexpr PeakLoops kDotprod[] = {{Read, Sdots, nullptr, F32Fmas}, {Read, Sdots, Bfdots, F32Fmas}};
constexpr PeakLoops kI8mm[] = {{Read, Smmlas, nullptr, F32Fmas}, {Read, Smmlas, Bfdots, F32Fmas}};

}  // namespace

const PeakLoops* NeonPeakLoops(CpuIsa isa) {
  const bool has_bf16 = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
  if (isa == CpuIsa::kI8mm) return &kI8mm[has_bf16];
  return isa == CpuIsa::kDotprod ? &kDotprod[has_bf16] : &kNeon;
}

}  // namespace ferry

#endif
