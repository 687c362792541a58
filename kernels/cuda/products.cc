#include "kernels/cuda/products.h"

namespace ferry::cuda {

cudaError_t LaunchProducts(const ProductDevice& device, ProductKernel kernel, const ProductParams& params, bool fused,
                           cudaStream_t stream) {
  switch (kernel) {
    case ProductKernel::kFew:
      return LaunchProductsFew(params, fused, stream);
    case ProductKernel::kMma:
      return LaunchProductsMma(params, fused, stream);
    case ProductKernel::kWgmma:
      return LaunchProductsWgmma(device, params, fused, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ferry::cuda
