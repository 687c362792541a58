// ik_llama.cpp's types; products_few.cuh has the kernel.

#include "kernels/cuda/products_few.cuh"

namespace ferry::cuda {

cudaError_t LaunchFewIk(const ProductParams& params, bool fused, cudaStream_t stream) {
  return LaunchFew(IkTypes{}, params, fused, stream);
}

}  // namespace ferry::cuda
