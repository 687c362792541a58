#pragma once

// A message of the API as JSON: numbers as numbers, fields by their names in the .proto, unset ones with their defaults.

#include <google/protobuf/message.h>

#include <nlohmann/json_fwd.hpp>

namespace ferry {

// Fields of messages that are not set are left out. Numbers that JSON has not become null.
nlohmann::ordered_json JsonOf(const google::protobuf::Message& message);

}  // namespace ferry
