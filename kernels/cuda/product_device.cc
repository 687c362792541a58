#include "kernels/cuda/product_device.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/products.h"

namespace ferry::cuda {

const char* QueryProductDevice(int device, ProductDevice* info) {
  if (const cudaError_t error = cudaSetDevice(device); error != cudaSuccess) return cudaGetErrorString(error);
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  info->device = device;
  info->capability = 10 * major + minor;
  if (const cudaError_t error = cudaDeviceGetAttribute(&info->num_sms, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  if (info->capability < 75) return "the GPU's compute capability is below 7.5";
  // Code for an older GPU that the driver compiled anew lacks the instructions for this one.
  const int built_for = ProductCodeCapability();
  if ((info->capability >= 80 && built_for < 80) || (info->capability >= 90 && built_for < 90)) {
    return "this build has no code for this GPU: build on this machine, or with its architecture in CMAKE_CUDA_ARCHITECTURES";
  }
  if (const cudaError_t error = PrepareProductsWgmma(&info->wgmma); error != cudaSuccess) return cudaGetErrorString(error);
  return nullptr;
}

}  // namespace ferry::cuda
