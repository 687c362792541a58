// Types whose codes are indices into a grid; products_few.cuh has the kernel.

#include "kernels/cuda/products_few.cuh"

namespace ferry::cuda {

cudaError_t LaunchFewGrids(const ProductParams& params, bool fused, cudaStream_t stream) {
  return LaunchFew(GridsTypes{}, params, fused, stream);
}

}  // namespace ferry::cuda
