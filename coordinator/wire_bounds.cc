#include "coordinator/wire_bounds.h"

#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstdint>

namespace ferry {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;

constexpr int kMaxDepth = 40;  // a constraint in parts has two messages a level

absl::Status Malformed() { return InvalidArgument("the message is malformed"); }

// Takes a varint off the front; false: there is none.
bool TakeVarint(std::string_view* rest, uint64_t* value) {
  *value = 0;
  for (size_t i = 0; i < 10 && i < rest->size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>((*rest)[i]);
    *value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
    if (byte < 0x80) {
      rest->remove_prefix(i + 1);
      return true;
    }
  }
  return false;
}

// How many numbers a packed list of `field` has.
int64_t PackedNumbers(const FieldDescriptor& field, std::string_view list) {
  switch (WireFormatLite::WireTypeForFieldType(static_cast<WireFormatLite::FieldType>(field.type()))) {
    case WireFormatLite::WIRETYPE_FIXED64:
      return static_cast<int64_t>(list.size() / 8);
    case WireFormatLite::WIRETYPE_FIXED32:
      return static_cast<int64_t>(list.size() / 4);
    default:  // each varint ends with a byte below 128
      return std::count_if(list.begin(), list.end(), [](char byte) { return static_cast<uint8_t>(byte) < 0x80; });
  }
}

class Walker {
 public:
  explicit Walker(const WireBounds& bounds) : bounds_(bounds) {}

  absl::Status Walk(std::string_view rest, const Descriptor& type, int depth) {
    if (depth > kMaxDepth) return InvalidArgument("the message nests deeper than %d", kMaxDepth);
    while (!rest.empty()) {
      if (++fields_ > bounds_.max_fields) return InvalidArgument("the message has more than %d fields", bounds_.max_fields);
      uint64_t tag = 0, size = 0;
      if (!TakeVarint(&rest, &tag) || tag > UINT32_MAX || tag >> 3 == 0) return Malformed();
      switch (static_cast<WireFormatLite::WireType>(tag & 7)) {
        case WireFormatLite::WIRETYPE_VARINT:
          if (!TakeVarint(&rest, &size)) return Malformed();
          continue;
        case WireFormatLite::WIRETYPE_FIXED64:
          size = 8;
          break;
        case WireFormatLite::WIRETYPE_FIXED32:
          size = 4;
          break;
        case WireFormatLite::WIRETYPE_LENGTH_DELIMITED: {
          if (!TakeVarint(&rest, &size) || size > rest.size()) return Malformed();
          const FieldDescriptor* const field = type.FindFieldByNumber(static_cast<int>(tag >> 3));
          if (field != nullptr) RETURN_IF_ERROR(LookInto(*field, rest.substr(0, size), depth));
          break;
        }
        default:  // groups, which no message of ours has
          return Malformed();
      }
      if (size > rest.size()) return Malformed();
      rest.remove_prefix(size);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status LookInto(const FieldDescriptor& field, std::string_view value, int depth) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) return Walk(value, *field.message_type(), depth + 1);
    if (!field.is_packable()) return absl::OkStatus();
    packed_numbers_ += PackedNumbers(field, value);
    if (packed_numbers_ <= bounds_.max_packed_numbers) return absl::OkStatus();
    return InvalidArgument("the message has more than %d numbers in lists", bounds_.max_packed_numbers);
  }

  const WireBounds bounds_;
  int fields_ = 0;
  int64_t packed_numbers_ = 0;
};

}  // namespace

absl::Status CheckWireBounds(std::string_view message, const Descriptor& type, const WireBounds& bounds) {
  return Walker(bounds).Walk(message, type, 0);
}

}  // namespace ferry
