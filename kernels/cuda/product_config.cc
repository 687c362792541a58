#include "kernels/cuda/product_config.h"

#include "absl/strings/str_format.h"

namespace ferry::cuda {
namespace {

ProductConfig Choose(const ProductDevice& device, DType act_type, int64_t rows, int few_rows) {
  ProductKernel kernel = ProductKernel::kMma;
  if (rows <= few_rows) {
    kernel = ProductKernel::kFew;
  } else if (device.wgmma && act_type == DType::kBF16) {
    kernel = ProductKernel::kWgmma;
  }
  return {.kernel = kernel, .rows = rows, .act_type = act_type};
}

}  // namespace

std::string ToString(const ProductConfig& config) {
  const char* const kernel = config.kernel == ProductKernel::kFew   ? "few"
                             : config.kernel == ProductKernel::kMma ? "mma"
                                                                    : "wgmma";
  return absl::StrFormat("%s, %d rows of %s", kernel, config.rows, NameOf(config.act_type));
}

ProductConfig ChooseDenseProduct(const ProductDevice& device, DType act_type, int64_t rows) {
  return Choose(device, act_type, rows, device.few_rows_dense);
}

ProductConfig ChooseExpertProduct(const ProductDevice& device, DType act_type, int64_t rows) {
  return Choose(device, act_type, rows, device.few_rows_expert);
}

}  // namespace ferry::cuda
