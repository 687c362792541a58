#pragma once

// JSON from clients: bounded before it is parsed, read field by field with errors that name the field, written so that nothing
// throws.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace ferry {

using Json = nlohmann::ordered_json;  // keys keep their order: that of a tool's parameters is part of a prompt

inline constexpr int kMaxJsonDepth = 64;             // arrays and objects inside each other
inline constexpr size_t kMaxJsonValues = 1'000'000;  // a value takes up to 100 bytes of memory
inline constexpr size_t kMaxJsonKeys = 1024;         // of one object: each is compared with those before it

// InvalidArgument: not JSON, not UTF-8, or beyond the limits above.
absl::StatusOr<Json> ParseJson(std::string_view text);
// The same, and it has to be an object.
absl::StatusOr<Json> ParseJsonObject(std::string_view text);

// Never throws: bytes that are not UTF-8 become U+FFFD.
std::string Dump(const Json& json);

// An InvalidArgument about one field of a request, which FieldOf gives back.
absl::Status FieldError(std::string_view field, const std::string& message);
// The field that `status` is about; empty when it names none. Also understands what the engine says: "top_p is 7, want (0, 1]".
std::string FieldOf(const absl::Status& status);

// Reads the fields of an object. A field that is missing or null is not there; one of a wrong type is an InvalidArgument
// "temperature is a string, want a number". Field names in errors have `path` in front: "messages[2].".
class JsonFields {
 public:
  // `object` is an object and outlives this.
  explicit JsonFields(const Json& object, std::string path = "") : object_(object), path_(std::move(path)) {}

  // nullptr when not there.
  const Json* Find(const char* name) const;
  bool Has(const char* name) const { return Find(name) != nullptr; }
  absl::StatusOr<std::optional<bool>> Bool(const char* name) const;
  // Finite and in [low, high].
  absl::StatusOr<std::optional<double>> Number(const char* name, double low, double high) const;
  // A whole number in [low, high]; 5.0 is one.
  absl::StatusOr<std::optional<int64_t>> Integer(const char* name, int64_t low, int64_t high) const;
  absl::StatusOr<std::optional<std::string>> String(const char* name) const;
  // nullptr when not there.
  absl::StatusOr<const Json*> Object(const char* name) const;
  absl::StatusOr<const Json*> Array(const char* name) const;
  // One string, or an array of at most `most`; empty when not there.
  absl::StatusOr<std::vector<std::string>> Strings(const char* name, size_t most) const;

  // "messages[2].role"
  std::string PathOf(std::string_view name) const { return path_ + std::string(name); }

 private:
  absl::Status WrongType(const char* name, const Json& value, const char* want) const;

  const Json& object_;
  const std::string path_;
};

// "a string", "an array": for errors.
std::string DescribeType(const Json& value);

}  // namespace ferry
