// The typed values of a GGUF file's metadata.

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>

#include "common/gguf/gguf.h"
#include "common/gguf/gguf_cursor.h"

namespace ferry {
namespace {

using gguf::FixedSizeOf;
using gguf::Load;
using gguf::Printable;

std::string TypeToString(const GgufEntry& entry) {
  if (entry.type != GgufType::kArray) return std::string(NameOf(entry.type));
  return absl::StrFormat("array of %s", NameOf(entry.element_type));
}

// Calls visit(value) with the C++ value at `from`; false for strings and arrays.
template <typename Visit>
bool VisitNumber(GgufType type, const std::byte* from, Visit visit) {
  switch (type) {
    case GgufType::kUint8:
      visit(Load<uint8_t>(from));
      return true;
    case GgufType::kInt8:
      visit(Load<int8_t>(from));
      return true;
    case GgufType::kUint16:
      visit(Load<uint16_t>(from));
      return true;
    case GgufType::kInt16:
      visit(Load<int16_t>(from));
      return true;
    case GgufType::kUint32:
      visit(Load<uint32_t>(from));
      return true;
    case GgufType::kInt32:
      visit(Load<int32_t>(from));
      return true;
    case GgufType::kUint64:
      visit(Load<uint64_t>(from));
      return true;
    case GgufType::kInt64:
      visit(Load<int64_t>(from));
      return true;
    case GgufType::kFloat32:
      visit(Load<float>(from));
      return true;
    case GgufType::kFloat64:
      visit(Load<double>(from));
      return true;
    case GgufType::kBool:
      visit(Load<uint8_t>(from) != 0);
      return true;
    case GgufType::kString:
    case GgufType::kArray:
      return false;
  }
  return false;
}

bool IsInteger(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kUint16:
    case GgufType::kInt16:
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kUint64:
    case GgufType::kInt64:
      return true;
    default:
      return false;
  }
}
bool IsFloat(GgufType type) { return type == GgufType::kFloat32 || type == GgufType::kFloat64; }

// An integer of any width as int64; nullopt above 2^63 - 1.
std::optional<int64_t> LoadInt(GgufType type, const std::byte* from) {
  std::optional<int64_t> result;
  VisitNumber(type, from, [&](auto value) {
    if constexpr (std::is_same_v<decltype(value), uint64_t>) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return;
    }
    result = static_cast<int64_t>(value);
  });
  return result;
}

double LoadFloat(GgufType type, const std::byte* from) {
  return type == GgufType::kFloat32 ? static_cast<double>(Load<float>(from)) : Load<double>(from);
}

// Strings laid end to end; their lengths were checked when the file was opened.
template <typename Visit>
void VisitStrings(const GgufEntry& entry, uint64_t max_count, Visit visit) {
  const std::byte* from = entry.value.data();
  for (uint64_t i = 0; i < std::min(entry.count, max_count); ++i) {
    const uint64_t size = Load<uint64_t>(from);
    visit(std::string_view(reinterpret_cast<const char*>(from + sizeof(uint64_t)), size));
    from += sizeof(uint64_t) + size;
  }
}

absl::Status MissingKey(const GgufFile& file, std::string_view key) {
  return InvalidArgument("%s: key '%s' is missing", file.path(), key);
}
absl::Status WrongType(const GgufFile& file, const GgufEntry& entry, std::string_view want) {
  return InvalidArgument("%s: key '%s' is of type %s, want %s (at byte %d)", file.path(), Printable(entry.key),
                         TypeToString(entry), want, entry.file_offset);
}

absl::StatusOr<int64_t> CheckedInt(const GgufFile& file, const GgufEntry& entry, GgufType type, const std::byte* from,
                                   int64_t min, int64_t max) {
  const std::optional<int64_t> value = LoadInt(type, from);
  if (value && *value >= min && *value <= max) return *value;
  const std::string found = value ? std::to_string(*value) : std::to_string(Load<uint64_t>(from));
  return InvalidArgument("%s: key '%s' is %s, want %d to %d (at byte %d)", file.path(), Printable(entry.key), found, min, max,
                         entry.file_offset + (from - entry.value.data()));
}

// The entry, present and of the wanted kind: a scalar or an array whose (element) type passes `accepts`.
template <typename Accepts>
absl::StatusOr<const GgufEntry*> EntryOf(const GgufFile& file, std::string_view key, bool array, Accepts accepts,
                                         std::string_view want) {
  const GgufEntry* const entry = file.FindEntry(key);
  if (entry == nullptr) return MissingKey(file, key);
  if ((entry->type == GgufType::kArray) != array || !accepts(entry->element_type)) return WrongType(file, *entry, want);
  return entry;
}

}  // namespace

std::string_view NameOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
      return "u8";
    case GgufType::kInt8:
      return "i8";
    case GgufType::kUint16:
      return "u16";
    case GgufType::kInt16:
      return "i16";
    case GgufType::kUint32:
      return "u32";
    case GgufType::kInt32:
      return "i32";
    case GgufType::kFloat32:
      return "f32";
    case GgufType::kBool:
      return "bool";
    case GgufType::kString:
      return "string";
    case GgufType::kArray:
      return "array";
    case GgufType::kUint64:
      return "u64";
    case GgufType::kInt64:
      return "i64";
    case GgufType::kFloat64:
      return "f64";
  }
  return "unknown";
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key, int64_t min, int64_t max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, IsInteger, "an integer"));
  return CheckedInt(*this, *entry, entry->type, entry->value.data(), min, max);
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key, double min, double max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, IsFloat, "f32 or f64"));
  const double value = LoadFloat(entry->type, entry->value.data());
  if (value >= min && value <= max) return value;
  return InvalidArgument("%s: key '%s' is %g, want %g to %g (at byte %d)", path_, Printable(key), value, min, max,
                         entry->file_offset);
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  const auto is_bool = [](GgufType type) { return type == GgufType::kBool; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, is_bool, "bool"));
  return entry->value[0] != std::byte{0};
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  const auto is_string = [](GgufType type) { return type == GgufType::kString; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, is_string, "string"));
  std::string_view value;
  VisitStrings(*entry, 1, [&](std::string_view text) { value = text; });
  return value;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(std::string_view key, int64_t min, int64_t max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, IsInteger, "array of an integer type"));
  const uint64_t size = *FixedSizeOf(entry->element_type);
  std::vector<int64_t> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    ASSIGN_OR_RETURN(values[i], CheckedInt(*this, *entry, entry->element_type, entry->value.data() + i * size, min, max));
  }
  return values;
}

absl::StatusOr<std::vector<double>> GgufFile::GetFloats(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, IsFloat, "array of f32 or f64"));
  const uint64_t size = *FixedSizeOf(entry->element_type);
  std::vector<double> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    values[i] = LoadFloat(entry->element_type, entry->value.data() + i * size);
  }
  return values;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  const auto is_string = [](GgufType type) { return type == GgufType::kString; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, is_string, "array of string"));
  std::vector<std::string_view> values;
  values.reserve(entry->count);
  VisitStrings(*entry, entry->count, [&](std::string_view text) { values.push_back(text); });
  return values;
}

absl::StatusOr<int64_t> GgufFile::GetIntOr(std::string_view key, int64_t absent, int64_t min, int64_t max) const {
  return Has(key) ? GetInt(key, min, max) : absent;
}
absl::StatusOr<double> GgufFile::GetFloatOr(std::string_view key, double absent, double min, double max) const {
  return Has(key) ? GetFloat(key, min, max) : absent;
}
absl::StatusOr<bool> GgufFile::GetBoolOr(std::string_view key, bool absent) const { return Has(key) ? GetBool(key) : absent; }
absl::StatusOr<std::string_view> GgufFile::GetStringOr(std::string_view key, std::string_view absent) const {
  return Has(key) ? GetString(key) : absent;
}

std::string GgufFile::ValueToString(const GgufEntry& entry, size_t max_elements, size_t max_chars) {
  std::vector<std::string> parts;
  if (entry.type != GgufType::kArray) max_elements = 1;
  if (entry.element_type == GgufType::kString) {
    VisitStrings(entry, max_elements, [&](std::string_view text) { parts.push_back(Printable(text, max_chars)); });
  } else {
    const uint64_t size = *FixedSizeOf(entry.element_type);
    for (uint64_t i = 0; i < std::min<uint64_t>(entry.count, max_elements); ++i) {
      VisitNumber(entry.element_type, entry.value.data() + i * size, [&](auto value) {
        using T = decltype(value);
        if constexpr (std::is_same_v<T, bool>) {
          parts.push_back(value ? "true" : "false");
        } else if constexpr (std::is_floating_point_v<T>) {
          parts.push_back(absl::StrFormat("%g", value));
        } else {
          parts.push_back(std::to_string(value));
        }
      });
    }
  }
  if (entry.type != GgufType::kArray) return parts[0];
  std::string text = "[";
  for (size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : ", ") + parts[i];
  if (parts.size() < entry.count) text += absl::StrFormat("%s... %d in all", parts.empty() ? "" : ", ", entry.count);
  return text + "]";
}

}  // namespace ferry
