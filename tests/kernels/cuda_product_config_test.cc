#include <gtest/gtest.h>

#include "kernels/cuda/product_config.h"

namespace ferry::cuda {
namespace {

const ProductDevice kHopper = {.capability = 90, .num_sms = 132, .wgmma = true};
const ProductDevice kAda = {.capability = 89, .num_sms = 128};

TEST(ProductConfig, StreamsWeightsForFewRows) {
  EXPECT_EQ(ChooseDenseProduct(kHopper, DType::kBF16, 32).kernel, ProductKernel::kFew);
  EXPECT_EQ(ChooseExpertProduct(kHopper, DType::kBF16, 16).kernel, ProductKernel::kFew);
}

TEST(ProductConfig, TakesWarpgroupProductsForManyRowsWhereTheyExist) {
  EXPECT_EQ(ChooseDenseProduct(kHopper, DType::kBF16, 33).kernel, ProductKernel::kWgmma);
  EXPECT_EQ(ChooseExpertProduct(kHopper, DType::kBF16, 17).kernel, ProductKernel::kWgmma);
  EXPECT_EQ(ChooseDenseProduct(kAda, DType::kBF16, 33).kernel, ProductKernel::kMma);
}

TEST(ProductConfig, TakesMmaForF16Activations) {
  EXPECT_EQ(ChooseDenseProduct(kHopper, DType::kF16, 4096).kernel, ProductKernel::kMma);
}

TEST(ProductConfig, Prints) {
  EXPECT_EQ(ToString(ChooseDenseProduct(kHopper, DType::kBF16, 512)), "wgmma, 512 rows of BF16");
  EXPECT_EQ(ToString(ChooseExpertProduct(kAda, DType::kF16, 3)), "few, 3 rows of F16");
}

}  // namespace
}  // namespace ferry::cuda
