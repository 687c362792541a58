#include "coordinator/constraint/schema_keywords.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "absl/strings/match.h"

namespace ferry::constraint {
namespace {

const std::set<std::string_view>& Restricting() {
  static const auto& names = *new std::set<std::string_view>{"type",
                                                             "enum",
                                                             "const",
                                                             "anyOf",
                                                             "oneOf",
                                                             "allOf",
                                                             "$ref",
                                                             "properties",
                                                             "required",
                                                             "items",
                                                             "minItems",
                                                             "maxItems",
                                                             "minLength",
                                                             "maxLength",
                                                             "pattern",
                                                             "format",
                                                             "prefixItems",
                                                             "additionalProperties",
                                                             "minimum",
                                                             "maximum",
                                                             "nullable",
                                                             "exclusiveMinimum",
                                                             "exclusiveMaximum",
                                                             "uniqueItems"};
  return names;
}

const std::set<std::string_view>& Describing() {
  static const auto& names = *new std::set<std::string_view>{
      "title",    "description", "default", "examples", "example", "$schema",     "$id",        "id",           "$comment",
      "readOnly", "writeOnly",   "$defs",   "strict",   "name",    "definitions", "deprecated", "discriminator"};
  return names;
}

using Merge = absl::StatusOr<Json> (*)(const Json& a, const Json& b);

Json AsList(const Json& type) { return type.is_array() ? type : Json::array({type}); }

// What both lists have. An integer is a number.
Json MergeTypes(const Json& a, const Json& b) {
  Json result = Json::array();
  const Json in_a = AsList(a), in_b = AsList(b);
  const auto has = [](const Json& list, const Json& type) { return std::find(list.begin(), list.end(), type) != list.end(); };
  for (const Json& type : in_a) {
    if (has(in_b, type) || (type == "integer" && has(in_b, "number"))) result.push_back(type);
  }
  for (const Json& type : in_b) {
    if (type == "integer" && has(in_a, "number") && !has(result, type)) result.push_back(type);
  }
  return result;
}

Json Both(const Json& a, const Json& b) { return Json{{"allOf", Json::array({a, b})}}; }

Json MergeProperties(const Json& a, const Json& b) {
  Json result = a;
  for (const auto& [name, schema] : b.items()) {
    result[name] = result.contains(name) ? Both(result[name], schema) : schema;
  }
  return result;
}

// A list without repetition: of a, and then of b.
Json MergeLists(const Json& a, const Json& b) {
  Json result = a;
  for (const Json& member : b) {
    if (std::find(result.begin(), result.end(), member) == result.end()) result.push_back(member);
  }
  return result;
}

Json Common(const Json& a, const Json& b) {
  Json result = Json::array();
  for (const Json& member : a) {
    if (std::find(b.begin(), b.end(), member) != b.end()) result.push_back(member);
  }
  return result;
}

// Properties of one that the other, with additionalProperties false, forbids.
bool ForbidsPropertiesOf(const Json& closed, const Json& other) {
  if (!closed.contains("additionalProperties") || closed["additionalProperties"] == true || !other.contains("properties")) {
    return false;
  }
  const Json declared = closed.value("properties", Json::object());
  for (const auto& [name, schema] : other["properties"].items()) {
    if (!declared.contains(name)) return true;
  }
  return false;
}

}  // namespace

bool Restricts(const std::string& keyword) { return Restricting().contains(keyword); }

absl::Status CheckKeywords(const Json& schema, const std::string& pointer) {
  if (schema.is_boolean()) return absl::OkStatus();
  if (!schema.is_object()) return InvalidArgument("%s is %s, want a schema: an object or a boolean", pointer, schema.type_name());
  for (const auto& [keyword, value] : schema.items()) {
    if (Restricts(keyword) || Describing().contains(keyword) || absl::StartsWith(keyword, "x-")) continue;
    return InvalidArgument("%s/%s: the keyword %s is not supported", pointer, keyword, keyword);
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> MergeSchemas(const Json& a, const Json& b, const std::string& pointer) {
  if (ForbidsPropertiesOf(a, b) || ForbidsPropertiesOf(b, a)) {
    return InvalidArgument("%s: additionalProperties in one part of an allOf forbids properties of another", pointer);
  }
  Json result = a;
  for (const auto& [keyword, value] : b.items()) {
    if (!result.contains(keyword) || !Restricts(keyword) || result[keyword] == value) {
      result[keyword] = value;
      continue;
    }
    const Json& old = result[keyword];
    if (keyword == "type") {
      result[keyword] = MergeTypes(old, value);
    } else if (keyword == "properties" && old.is_object() && value.is_object()) {
      result[keyword] = MergeProperties(old, value);
    } else if (keyword == "required" && old.is_array() && value.is_array()) {
      result[keyword] = MergeLists(old, value);
    } else if (keyword == "enum" && old.is_array() && value.is_array()) {
      result[keyword] = Common(old, value);
    } else if (keyword == "items" || keyword == "additionalProperties") {
      result[keyword] = Both(old, value);
    } else if (absl::StartsWith(keyword, "min") && old.is_number() && value.is_number()) {
      result[keyword] = std::max(old, value);
    } else if (absl::StartsWith(keyword, "max") && old.is_number() && value.is_number()) {
      result[keyword] = std::min(old, value);
    } else {
      return InvalidArgument("%s: two different values of %s in one allOf are not supported", pointer, keyword);
    }
  }
  return result;
}

}  // namespace ferry::constraint
