// NEON: the tables of aarch64, which differ in their integer products alone.
//
// Products of BF16 weights widen them by a shift and multiply in f32, like the other tables. BFDOT and BFMMLA would round
// activations to BF16 and sum in an order of their own.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__aarch64__)  // another processor family

namespace ferry {
const CpuKernels* NeonKernels() { return nullptr; }
const CpuKernels* DotprodKernels() { return nullptr; }
const CpuKernels* I8mmKernels() { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/simd_neon.h"
#include "kernels/cpu/vector_kernels.h"

namespace ferry {
namespace {

template <ProductFunction (*kProductOf)(DType)>
void PanelProductNeon(const PanelProduct& p) {
  if (const ProductFunction product = kProductOf(p.dtype)) return product(p);
  FloatPanelProduct(p);
}

template <ProductFunction (*kProductOf)(DType)>
constexpr CpuKernels TableOf(const char* name) {
  return {name, QuantizeRow, GluBlocks, Glu, PanelProductNeon<kProductOf>, FloatProduct, RmsNormRow, Attention, LogSumExp, Delta};
}
constexpr CpuKernels kNeon = TableOf<FormatProductNeon>("NEON");
constexpr CpuKernels kDotprod = TableOf<FormatProductDotprod>("NEON DotProd");
constexpr CpuKernels kI8mm = TableOf<FormatProductI8mm>("NEON I8MM");

}  // namespace

const CpuKernels* NeonKernels() { return &kNeon; }
const CpuKernels* DotprodKernels() { return FormatProductDotprod(DType::kQ8_0) == nullptr ? nullptr : &kDotprod; }
const CpuKernels* I8mmKernels() { return FormatProductI8mm(DType::kQ8_0) == nullptr ? nullptr : &kI8mm; }

}  // namespace ferry

#endif
