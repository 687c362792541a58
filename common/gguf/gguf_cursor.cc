#include "common/gguf/gguf_cursor.h"

#include <algorithm>

namespace ferry::gguf {
namespace {

constexpr uint64_t kMaxKeyBytes = 65535;  // the format's own limit

// Length of the UTF-8 character that `text` begins with; 0 when it is a control character or not UTF-8.
size_t CharacterBytes(std::string_view text) {
  const unsigned char first = text[0];
  if (first < 0x80) return first >= 0x20 && first != 0x7f;
  const size_t size = first >= 0xf8 ? 0 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return size;
}

}  // namespace

std::optional<uint64_t> FixedSizeOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return std::nullopt;
}

std::string Printable(std::string_view text, size_t max_bytes) {
  std::string printable;
  while (!text.empty()) {
    if (printable.size() >= max_bytes) return printable + "...";
    const size_t size = CharacterBytes(text);
    if (size == 0) {
      printable += absl::StrFormat("\\x%02x", static_cast<unsigned char>(text[0]));
    } else {
      printable += text.substr(0, size);
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return printable;
}

absl::Status Cursor::SkipValues(GgufType type, uint64_t count) {
  if (type == GgufType::kString) {
    if (count > bytes_left() / sizeof(uint64_t)) {
      return ErrorAt(offset_, "%d strings do not fit into the %d bytes left", count, bytes_left());
    }
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN([[maybe_unused]] const std::string_view text, ReadString("string"));
    }
    return absl::OkStatus();
  }
  const uint64_t start = offset_;
  ASSIGN_OR_RETURN(const std::span<const std::byte> values,
                   ReadBytes(CheckedSize(count) * CheckedSize(*FixedSizeOf(type)), "value"));
  if (type == GgufType::kBool) {
    const auto other = std::find_if(values.begin(), values.end(), [](std::byte b) { return b > std::byte{1}; });
    if (other != values.end()) return ErrorAt(start, "a bool is %d, not 0 or 1", static_cast<int>(*other));
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufEntry> Cursor::ReadEntry() {
  GgufEntry entry{};
  ASSIGN_OR_RETURN(entry.key, ReadName("key", kMaxKeyBytes));
  set_subject(absl::StrFormat("key '%s'", Printable(entry.key)));
  const uint64_t type_offset = offset_;
  ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>("type"));
  entry.type = entry.element_type = GgufType(type);
  entry.count = 1;
  if (!FixedSizeOf(entry.type)) return ErrorAt(type_offset, "unknown value type %d", type);
  if (entry.type == GgufType::kArray) {
    const uint64_t element_offset = offset_;
    ASSIGN_OR_RETURN(const uint32_t element_type, Read<uint32_t>("element type"));
    entry.element_type = GgufType(element_type);
    if (!FixedSizeOf(entry.element_type)) return ErrorAt(element_offset, "unknown element type %d", element_type);
    if (entry.element_type == GgufType::kArray) return ErrorAt(element_offset, "arrays of arrays are not supported");
    ASSIGN_OR_RETURN(entry.count, Read<uint64_t>("array length"));
  }
  entry.file_offset = offset_;
  RETURN_IF_ERROR(SkipValues(entry.element_type, entry.count));
  entry.value = bytes_.subspan(entry.file_offset, offset_ - entry.file_offset);
  return entry;
}

}  // namespace ferry::gguf
