// The types that every product kernel decodes; products_few.cuh has the kernel.

#include "kernels/cuda/products_few.cuh"

namespace ferry::cuda {

cudaError_t LaunchFewDirect(const ProductParams& params, bool fused, cudaStream_t stream) {
  return LaunchFew(DirectTypes{}, params, fused, stream);
}

}  // namespace ferry::cuda
