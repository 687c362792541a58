#pragma once

// Random schemas over the keywords that are supported, and random texts that a constraint's masks allow.

#include <random>
#include <string>

#include "absl/strings/str_format.h"
#include "coordinator/constraint/matcher.h"
#include "nlohmann/json.hpp"

namespace ferry::constraint {

class RandomSchema {
 public:
  using Json = nlohmann::ordered_json;
  explicit RandomSchema(uint32_t seed) : random_(seed) {}

  Json Make() {
    Json schema = Value(0);
    if (!schema.is_object()) schema = Json{{"anyOf", Json::array({schema, Object(1)})}};
    schema["$defs"] =
        Json{{"leaf", Scalar()},
             {"tree",
              {{"type", "object"},
               {"properties", {{"value", Scalar()}, {"children", {{"type", "array"}, {"items", {{"$ref", "#/$defs/tree"}}}}}}},
               {"required", Json::array({"value"})},
               {"additionalProperties", false}}}};
    return schema;
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }

  Json Value(int depth) {
    switch (depth > 3 ? Below(3) : Below(9)) {
      case 0:
      case 1:
        return Scalar();
      case 2:
        return Json{{"$ref", Below(2) ? "#/$defs/leaf" : "#/$defs/tree"}};
      case 3:
      case 4:
      case 5:
        return Object(depth);
      case 6:
        return Array(depth);
      case 7:
        return Json{{"anyOf", Json::array({Value(depth + 1), Value(depth + 1)})}, {"description", "either"}};
      default:
        return Json{{"allOf", Json::array({Object(depth + 1), Json{{"title", "merged"}}})}};
    }
  }

  Json Integer() {
    Json schema = {{"type", "integer"}};
    const int low = Below(4000) - 2000;
    if (Below(2)) schema[Below(2) ? "minimum" : "exclusiveMinimum"] = low;
    if (Below(2)) schema[Below(2) ? "maximum" : "exclusiveMaximum"] = low + 2 + Below(3000);
    return schema;
  }

  Json Number() {
    Json schema = {{"type", "number"}};
    const double low = (Below(4000) - 2000) / 8.0;
    if (Below(2)) schema[Below(2) ? "minimum" : "exclusiveMinimum"] = low;
    if (Below(2)) schema[Below(2) ? "maximum" : "exclusiveMaximum"] = low + (1 + Below(3000)) / 16.0;
    return schema;
  }

  Json String() {
    static constexpr const char* kPatterns[] = {"^[a-z]{1,5}$", "^\\d{3}-\\d{4}$", "^ab?c",     "^(foo|bar)+$",
                                                "^[^a-z\"]*$",  "^\\S+$",          "^.{0,3}x$", "^[\\\\/]"};
    static constexpr const char* kFormats[] = {"date", "time", "date-time", "email", "uuid",
                                               "ipv4", "ipv6", "hostname",  "uri",   "duration"};
    Json schema = {{"type", "string"}};
    const int what = Below(5);
    if (what == 0) schema["pattern"] = kPatterns[Below(std::size(kPatterns))];
    if (what == 1) schema["format"] = kFormats[Below(std::size(kFormats))];
    if (what >= 3) {
      const int low = Below(6);
      schema["minLength"] = low;
      if (what == 4) schema["maxLength"] = low + Below(20);
    }
    if (what == 2 && Below(2)) {
      schema["pattern"] = "^[a-c]*$";
      schema["minLength"] = Below(4);
    }
    return schema;
  }

  Json Scalar() {
    switch (Below(8)) {
      case 0:
        return Integer();
      case 1:
        return Number();
      case 2:
        return Json{{"type", "boolean"}};
      case 3:
        return Json{{"enum", Json::array({"red", "gr\"een", 3, nullptr, Json::object({{"a", Json::array({1, "é"})}})})}};
      case 4:
        return Json{{"const", "fixed"}};
      case 5:
        return Json{{"type", Json::array({"string", "null"})}};
      default:
        return String();
    }
  }

  Json Array(int depth) {
    Json schema = {{"type", "array"}};
    const int low = Below(3);
    if (Below(3) == 0) {
      schema["prefixItems"] = Json::array({Scalar(), Value(depth + 1)});
      schema["items"] = Below(2) ? Json(false) : Scalar();
    } else {
      schema["items"] = Value(depth + 1);
      if (Below(2)) schema["minItems"] = low;
      if (Below(2)) schema["maxItems"] = low + Below(3);
    }
    return schema;
  }

  Json Object(int depth) {
    Json schema = {{"type", "object"}, {"properties", Json::object()}, {"required", Json::array()}};
    const int count = Below(5);
    for (int i = 0; i < count; ++i) {
      static constexpr const char* kNames[] = {"name", "nam", "id", "größe", "a b", "x\"y", "items", "value"};
      const char* name = kNames[Below(std::size(kNames))];
      if (schema["properties"].contains(name)) continue;
      schema["properties"][name] = Value(depth + 1);
      if (Below(2)) schema["required"].push_back(name);
    }
    if (Below(3) != 0) schema["additionalProperties"] = Below(2) ? Json(false) : Scalar();
    return schema;
  }

  std::mt19937 random_;
};

// A text made of tokens that the masks allow, drawn at random; after `free_tokens` it takes what ends it soonest.
inline absl::StatusOr<std::string> RandomText(const std::shared_ptr<const CompiledGrammar>& grammar, const TokenSource& source,
                                              uint32_t seed, int free_tokens) {
  std::mt19937 random(seed);
  Matcher matcher(grammar);
  std::string text;
  for (int step = 0; !matcher.MustEnd(); ++step) {
    if (step > 50 * free_tokens) return Internal("the text does not end: %s", text);
    const bool closing = step >= free_tokens;
    if (matcher.CanEnd() && (closing || random() % 8 == 0)) return text;
    ASSIGN_OR_RETURN(const TokenMask* mask, matcher.Mask());
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < mask->vocab_size(); ++id) {
      if (mask->Allows(id)) allowed.push_back(id);
    }
    if (allowed.empty()) return Internal("no token fits behind %s", text);
    int32_t id = allowed[random() % allowed.size()];
    if (closing && random() % 4 != 0) {
      for (const char close : {'0', '"', ']', '}'}) {  // the last one that fits; ids below 256 are bytes
        if (mask->Allows(close)) id = close;
      }
      if (mask->Allows('~') && mask->Allows('"')) id = '"';  // within a string
    }
    RETURN_IF_ERROR(matcher.Accept(id));
    text += source.TokenBytes(id);
  }
  return text;
}

}  // namespace ferry::constraint
