#pragma once

// What the product kernels (tiled_gemm.h, expert_mlp.h) need to know of a GPU, asked once.

namespace ferry::cuda {

struct ProductDevice {
  int device = 0;
  int capability = 0;  // 10 * major + minor: 75, 80, 90, 120
  int num_sms = 0;
  // Warpgroup products: capability 90 in a build for 90a. Set false to run the portable kernels there.
  bool wgmma = false;
  // Up to so many rows (at most 32) a product streams its weights straight to registers (products_few.cu). A row's bits
  // depend on which kernel computes it, so these stay as they are while results are to be compared.
  int few_rows_dense = 32;
  int few_rows_expert = 16;
};

// Fills `info` for GPU `device` and lets the kernels use its large shared memory. Returns null, or what failed (static
// text): capability below 7.5, or a build without code for this GPU. Leaves `device` the current one.
const char* QueryProductDevice(int device, ProductDevice* info);

}  // namespace ferry::cuda
