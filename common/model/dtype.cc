#include "common/model/dtype.h"

#include <array>
#include <string>

#include "common/model/formats/formats.h"

namespace ferry {

namespace {

// Types that Ferry knows of and does not multiply: their tensors have a size, so that a file with them can be read and described.
std::optional<DTypeInfo> OtherInfoOf(DType type) {
  switch (type) {
    //                               name    elements bytes
    case DType::kQ4_1:
      return DTypeInfo{"Q4_1", 32, 20, false};
    case DType::kQ5_0:
      return DTypeInfo{"Q5_0", 32, 22, false};
    case DType::kQ5_1:
      return DTypeInfo{"Q5_1", 32, 24, false};
    case DType::kQ8_1:
      return DTypeInfo{"Q8_1", 32, 36, false};
    case DType::kQ2_K:
      return DTypeInfo{"Q2_K", 256, 84, false};
    case DType::kQ3_K:
      return DTypeInfo{"Q3_K", 256, 110, false};
    case DType::kQ4_K:
      return DTypeInfo{"Q4_K", 256, 144, false};
    case DType::kQ5_K:
      return DTypeInfo{"Q5_K", 256, 176, false};
    case DType::kQ6_K:
      return DTypeInfo{"Q6_K", 256, 210, false};
    case DType::kQ8_K:
      return DTypeInfo{"Q8_K", 256, 292, false};
    case DType::kIQ2_XXS:
      return DTypeInfo{"IQ2_XXS", 256, 66, false};
    case DType::kIQ2_XS:
      return DTypeInfo{"IQ2_XS", 256, 74, false};
    case DType::kIQ3_XXS:
      return DTypeInfo{"IQ3_XXS", 256, 98, false};
    case DType::kIQ1_S:
      return DTypeInfo{"IQ1_S", 256, 50, false};
    case DType::kIQ4_NL:
      return DTypeInfo{"IQ4_NL", 32, 18, false};
    case DType::kIQ3_S:
      return DTypeInfo{"IQ3_S", 256, 110, false};
    case DType::kIQ2_S:
      return DTypeInfo{"IQ2_S", 256, 82, false};
    case DType::kIQ4_XS:
      return DTypeInfo{"IQ4_XS", 256, 136, false};
    case DType::kI8:
      return DTypeInfo{"I8", 1, 1, false};
    case DType::kI16:
      return DTypeInfo{"I16", 1, 2, false};
    case DType::kI32:
      return DTypeInfo{"I32", 1, 4, false};
    case DType::kI64:
      return DTypeInfo{"I64", 1, 8, false};
    case DType::kF64:
      return DTypeInfo{"F64", 1, 8, false};
    case DType::kIQ1_M:
      return DTypeInfo{"IQ1_M", 256, 56, false};
    case DType::kTQ1_0:
      return DTypeInfo{"TQ1_0", 256, 54, false};
    case DType::kTQ2_0:
      return DTypeInfo{"TQ2_0", 256, 66, false};
    case DType::kNVFP4:
      return DTypeInfo{"NVFP4", 64, 36, false};
    case DType::kQ1_0:
      return DTypeInfo{"Q1_0", 128, 18, false};
    case DType::kQ6_0:
      return DTypeInfo{"Q6_0", 32, 26, false, 0};
    case DType::kIQ2_K:
      return DTypeInfo{"IQ2_K", 256, 76, false, 0};
    case DType::kIQ3_K:
      return DTypeInfo{"IQ3_K", 256, 110, false, 0};
    case DType::kIQ4_K:
      return DTypeInfo{"IQ4_K", 256, 144, false, 0};
    case DType::kIQ5_K:
      return DTypeInfo{"IQ5_K", 256, 176, false, 0};
    case DType::kIQ6_K:
      return DTypeInfo{"IQ6_K", 256, 212, false, 0};
    case DType::kIQ4_KS:
      return DTypeInfo{"IQ4_KS", 256, 136, false, 4};
    case DType::kIQ2_KS:
      return DTypeInfo{"IQ2_KS", 256, 70, false, 2};
    case DType::kIQ4_KSS:
      return DTypeInfo{"IQ4_KSS", 256, 128, false, 4};
    case DType::kIQ5_KS:
      return DTypeInfo{"IQ5_KS", 256, 168, false, 4};
    case DType::kIQ3_KS:
      return DTypeInfo{"IQ3_KS", 256, 102, false, 2};
    case DType::kIQ2_KL:
      return DTypeInfo{"IQ2_KL", 256, 86, false, 2};
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<DTypeInfo> InfoOf(DType type) {
  std::optional<DTypeInfo> info = OtherInfoOf(type);
  WithFormat(type, [&]<DType kType>() {
    using F = Format<kType>;
    info = DTypeInfo{F::kName, F::kBlockCols, F::kBlockBytes, true, F::kRowBytes};
  });
  return info;
}

std::string ComputableTypes() {
  std::string names;
  ForEachFormat([&]<DType kType>() { names.append(names.empty() ? "" : ", ").append(Format<kType>::kName); });
  return names;
}

std::string_view NameOf(DType type) {
  if (const std::optional<DTypeInfo> info = InfoOf(type)) return info->name;
  // Interned, because the name outlives the call. The table ends at 255: a reader of a file prints a larger id itself.
  static const auto* const unknown = [] {
    auto* names = new std::array<std::string, 256>;
    for (size_t id = 0; id < names->size(); ++id) (*names)[id] = "type " + std::to_string(id);
    return names;
  }();
  const uint32_t id = static_cast<uint32_t>(type);
  return id < unknown->size() ? std::string_view((*unknown)[id]) : std::string_view("type above 255");
}

}  // namespace ferry
