#pragma once

// Bounds on a message before it is parsed: protobuf turns a field of two bytes on the wire into a string or an entry of a map of
// 50 to 100 bytes in memory, and a number of one byte into four or eight, so the size of a message says little about what it
// costs.

#include <google/protobuf/descriptor.h>

#include <cstdint>
#include <limits>
#include <string_view>

#include "common/status.h"

namespace ferry {

struct WireBounds {
  int max_fields = 0;  // those of messages in it counted; a packed list of numbers is one
  int64_t max_packed_numbers = std::numeric_limits<int64_t>::max();  // of all packed lists
};

// Walks through the wire format of `message`, of type `type`, without keeping anything. InvalidArgument: it exceeds `bounds`,
// nests deeper than 40, or is malformed.
absl::Status CheckWireBounds(std::string_view message, const google::protobuf::Descriptor& type, const WireBounds& bounds);

}  // namespace ferry
