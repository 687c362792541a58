#pragma once

// The keywords of JSON schemas: which are known, and what two schemas that both must hold are together.

#include <string>

#include "common/status.h"
#include "nlohmann/json.hpp"

namespace ferry::constraint {

using Json = nlohmann::ordered_json;  // properties keep their order

// The schema is an object or a boolean and its keywords are known. InvalidArgument names the first that is not.
absl::Status CheckKeywords(const Json& schema, const std::string& pointer);
// Whether a keyword restricts values at all (title does not).
bool Restricts(const std::string& keyword);

// A schema that accepts what both accept. Both are objects without $ref and allOf. InvalidArgument names a keyword without a
// simple merge.
absl::StatusOr<Json> MergeSchemas(const Json& a, const Json& b, const std::string& pointer);

}  // namespace ferry::constraint
