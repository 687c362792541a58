// NEON with dot products of bytes (ARMv8.2 DotProd): products of every number format with scales and codes.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__ARM_FEATURE_DOTPROD)  // another processor family, or a compiler without the flags

namespace ferry {
ProductFunction FormatProductDotprod(DType) { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/products_neon.h"

namespace ferry {

ProductFunction FormatProductDotprod(DType type) { return ProductOf<ByElement>(type); }

}  // namespace ferry

#endif
