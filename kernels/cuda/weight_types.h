#pragma once

// The types of weights (common/model/formats) by the part of the CUDA backend that decodes them.

#include <cuda_runtime_api.h>

#include "common/model/formats/formats.h"

namespace ferry::cuda {

// dequant.cuh decodes these for every product kernel.
using DirectTypes = TypeList<DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kBF16, DType::kF16, DType::kF32>;
// row_decoder.cuh decodes these, for products of few rows and for the expansion.
using BlocksTypes = TypeList<DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ6_0, DType::kIQ4_NL, DType::kNVFP4, DType::kQ2_K,
                             DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0, DType::kIQ4_XS>;
using GridsTypes =
    TypeList<DType::kIQ1_S, DType::kIQ1_M, DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S, DType::kIQ3_XXS, DType::kIQ3_S>;
using IkTypes = TypeList<DType::kIQ2_K, DType::kIQ3_K, DType::kIQ4_K, DType::kIQ5_K, DType::kIQ6_K, DType::kIQ2_KS,
                         DType::kIQ2_KL, DType::kIQ3_KS, DType::kIQ4_KS, DType::kIQ4_KSS, DType::kIQ5_KS>;

template <DType... kTypes>
constexpr bool IsAmong(TypeList<kTypes...>, DType type) {
  return ((type == kTypes) || ...);
}
template <DType kType>
inline constexpr bool kIsDirect = IsAmong(DirectTypes{}, kType);

// f.operator()<DType>() for a direct type; cudaErrorInvalidValue for another.
template <typename F>
cudaError_t WithDirectType(DType type, F&& f) {
  cudaError_t result = cudaErrorInvalidValue;
  WithFormat(DirectTypes{}, type, [&]<DType kType>() { result = f.template operator()<kType>(); });
  return result;
}

}  // namespace ferry::cuda
