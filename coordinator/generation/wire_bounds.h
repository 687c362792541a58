#pragma once

// Bounds on a message before it is parsed: protobuf turns a field of two bytes on the wire into a string or an entry of a map of
// 50 to 100 bytes in memory, so the size of a message says little about what it costs.

#include <google/protobuf/descriptor.h>

#include <string_view>

#include "common/status.h"

namespace ferry {

// Walks through the wire format of `message`, of type `type`, without keeping anything. InvalidArgument: it has more than
// `max_fields` fields, those of messages in it counted (a packed list of numbers is one), nests deeper than 40, or is malformed.
absl::Status CheckWireBounds(std::string_view message, const google::protobuf::Descriptor& type, int max_fields);

}  // namespace ferry
