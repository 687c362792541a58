// Types of blocks of 32, and the K quants; products_few.cuh has the kernel.

#include "kernels/cuda/products_few.cuh"

namespace ferry::cuda {

cudaError_t LaunchFewBlocks(const ProductParams& params, bool fused, cudaStream_t stream) {
  return LaunchFew(BlocksTypes{}, params, fused, stream);
}

}  // namespace ferry::cuda
