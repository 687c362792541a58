#pragma once

// Which kernel computes a product: chosen apart from the launch, so that the choice can be printed, and tested without a GPU.

#include <cstdint>
#include <string>

#include "common/model/dtype.h"
#include "kernels/cuda/product_device.h"

namespace ferry::cuda {

enum class ProductKernel {
  kFew,    // products_few.cu: streams the weights once for a few rows
  kMma,    // products_mma.cu: mma.sync, any rows
  kWgmma,  // products_wgmma.cu: warpgroup products, any rows, BF16 activations
};

struct ProductConfig {
  ProductKernel kernel = ProductKernel::kMma;
  int64_t rows = 0;
  DType act_type = DType::kBF16;
  bool operator==(const ProductConfig&) const = default;
};
std::string ToString(const ProductConfig& config);  // "wgmma, 512 rows of BF16"

// For `rows` rows of one dense matrix, or of one expert.
ProductConfig ChooseDenseProduct(const ProductDevice& device, DType act_type, int64_t rows);
ProductConfig ChooseExpertProduct(const ProductDevice& device, DType act_type, int64_t rows);

}  // namespace ferry::cuda
