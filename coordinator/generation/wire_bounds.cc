#include "coordinator/generation/wire_bounds.h"

#include <google/protobuf/wire_format_lite.h>

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

absl::Status Walk(std::string_view rest, const Descriptor& type, int depth, int max_fields, int* fields) {
  if (depth > kMaxDepth) return InvalidArgument("the message nests deeper than %d", kMaxDepth);
  while (!rest.empty()) {
    if (++*fields > max_fields) return InvalidArgument("the message has more than %d fields", max_fields);
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
        if (field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
          RETURN_IF_ERROR(Walk(rest.substr(0, size), *field->message_type(), depth + 1, max_fields, fields));
        }
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

}  // namespace

absl::Status CheckWireBounds(std::string_view message, const Descriptor& type, int max_fields) {
  int fields = 0;
  return Walk(message, type, 0, max_fields, &fields);
}

}  // namespace ferry
