#pragma once

// The list of formats, and what every list, switch and message is made of.

#include <optional>
#include <string>

#include "common/model/formats/blocks_of_32.h"
#include "common/model/formats/floats.h"
#include "common/model/formats/format.h"
#include "common/model/formats/i_quants.h"
#include "common/model/formats/ik_quants.h"
#include "common/model/formats/k_quants.h"

namespace ferry {

template <DType... kTypes>
struct TypeList {};

// Every type that Ferry multiplies, in the order in which messages name them.
using AllTypes =
    TypeList<DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
             DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ1_S, DType::kIQ1_M, DType::kIQ2_XXS,
             DType::kIQ2_XS, DType::kIQ2_S, DType::kIQ3_XXS, DType::kIQ3_S, DType::kIQ4_NL, DType::kIQ4_XS, DType::kTQ2_0,
             DType::kMXFP4, DType::kNVFP4, DType::kQ6_0, DType::kIQ2_K, DType::kIQ3_K, DType::kIQ4_K, DType::kIQ5_K,
             DType::kIQ6_K, DType::kIQ2_KS, DType::kIQ2_KL, DType::kIQ3_KS, DType::kIQ4_KS, DType::kIQ4_KSS, DType::kIQ5_KS>;

// Calls f.operator()<DType>() for every type.
template <typename F, DType... kTypes>
constexpr void ForEachFormat(TypeList<kTypes...>, F&& f) {
  (f.template operator()<kTypes>(), ...);
}
template <typename F>
constexpr void ForEachFormat(F&& f) {
  ForEachFormat(AllTypes{}, f);
}

// Calls f.operator()<DType>() for `type`; false, without a call, for a type that has no format.
template <typename F, DType... kTypes>
constexpr bool WithFormat(TypeList<kTypes...>, DType type, F&& f) {
  return ((type == kTypes ? (f.template operator()<kTypes>(), true) : false) || ...);
}
template <typename F>
constexpr bool WithFormat(DType type, F&& f) {
  return WithFormat(AllTypes{}, type, f);
}

}  // namespace ferry
