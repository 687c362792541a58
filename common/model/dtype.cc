#include "common/model/dtype.h"

#include <array>
#include <string>

#include "common/model/formats/formats.h"

namespace ferry {

namespace {

// Types without a format (formats/formats.h): their tensors have a size, so that a file with them can be read and described.
std::optional<DTypeInfo> OtherInfoOf(DType type) {
  switch (type) {
    //                               name    elements bytes
    case DType::kQ8_1:
      return DTypeInfo{"Q8_1", 32, 36, false};
    case DType::kQ8_K:
      return DTypeInfo{"Q8_K", 256, 292, false};
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
    case DType::kTQ1_0:
      return DTypeInfo{"TQ1_0", 256, 54, false};
    case DType::kQ1_0:
      return DTypeInfo{"Q1_0", 128, 18, false};
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<DTypeInfo> InfoOf(DType type) {
  std::optional<DTypeInfo> info;
  WithFormat(type, [&]<DType kType>() {
    using F = Format<kType>;
    info = DTypeInfo{F::kName, F::kBlockCols, F::kBlockBytes, true, F::kRowBytes};
  });
  return info ? info : OtherInfoOf(type);
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
