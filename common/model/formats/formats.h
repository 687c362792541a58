#pragma once

// The list of formats, and what every list, switch and message is made of.

#include <optional>
#include <string>

#include "common/model/formats/blocks_of_32.h"
#include "common/model/formats/floats.h"
#include "common/model/formats/format.h"

namespace ferry {

template <DType... kTypes>
struct TypeList {};

// Every type that Ferry multiplies, in the order in which messages name them.
using AllTypes = TypeList<DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kMXFP4;

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
