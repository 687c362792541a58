#include "gateway/json/json.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/cord.h"

namespace ferry {
namespace {

constexpr char kFieldPayload[] = "ferry/field";
constexpr size_t kMaxFieldBytes = 64;
constexpr size_t kNoKeys = SIZE_MAX;

// One pass without memory of its own, before the parser allocates anything.
absl::Status CheckSize(std::string_view text) {
  int depth = 0;
  size_t values = 1;
  std::array<size_t, kMaxJsonDepth + 1> keys = {};  // of the objects that are open; arrays have kNoKeys
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '[':
      case '{':
        if (++depth > kMaxJsonDepth) return InvalidArgument("the body is JSON that is nested more than %d deep", kMaxJsonDepth);
        keys[depth] = c == '{' ? 1 : kNoKeys;
        ++values;
        break;
      case ']':
      case '}':
        depth = std::max(depth - 1, 0);
        break;
      case ',':
        ++values;
        if (keys[depth] != kNoKeys && ++keys[depth] > kMaxJsonKeys) {
          return InvalidArgument("the body is JSON that has an object with more than %d keys", kMaxJsonKeys);
        }
        break;
      default:
        break;
    }
    if (values > kMaxJsonValues) return InvalidArgument("the body is JSON with more than %d values", kMaxJsonValues);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text) {
  RETURN_IF_ERROR(CheckSize(text));
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    return InvalidArgument("the body is not JSON: there is an error at byte %d", error.byte);
  } catch (const Json::exception& error) {  // a number that no double holds
    return InvalidArgument("the body is JSON with a value out of range");
  }
}

absl::StatusOr<Json> ParseJsonObject(std::string_view text) {
  ASSIGN_OR_RETURN(Json json, ParseJson(text));
  if (!json.is_object()) return InvalidArgument("the body is %s, want a JSON object", DescribeType(json));
  return json;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

absl::Status FieldError(std::string_view field, const std::string& message) {
  absl::Status status = InvalidArgument("%s", message);
  status.SetPayload(kFieldPayload, absl::Cord(absl::string_view(field.data(), field.size())));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  if (const auto payload = status.GetPayload(kFieldPayload)) return std::string(*payload);
  const std::string message(status.message());
  if (!absl::IsInvalidArgument(status)) return "";
  // "top_p is 7", "stop has 20 strings", "logit_bias names token 9"
  const size_t end = message.find(' ');
  if (end == std::string::npos || end > kMaxFieldBytes) return "";
  const std::string_view rest = std::string_view(message).substr(end + 1);
  std::string word = message.substr(0, end);
  if (word.ends_with(':')) {  // "messages[2].content: a string is wanted"
    word.pop_back();
  } else if (!rest.starts_with("is ") && !rest.starts_with("has ") && !rest.starts_with("names ")) {
    return "";
  }
  const bool name = !word.empty() && word.find_first_not_of("abcdefghijklmnopqrstuvwxyz_.[]0123456789") == std::string::npos;
  return name ? word : "";
}

const Json* JsonFields::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonFields::WrongType(const char* name, const Json& value, const char* want) const {
  return FieldError(PathOf(name), absl::StrFormat("%s is %s, want %s", PathOf(name), DescribeType(value), want));
}

absl::StatusOr<std::optional<bool>> JsonFields::Bool(const char* name) const {
  const Json* const value = Find(name);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return WrongType(name, *value, "true or false");
  return std::optional<bool>(value->get<bool>());
}

absl::StatusOr<std::optional<double>> JsonFields::Number(const char* name, double low, double high) const {
  const Json* const value = Find(name);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number()) return WrongType(name, *value, "a number");
  const double number = value->get<double>();
  if (!(number >= low && number <= high)) {
    return FieldError(PathOf(name), absl::StrFormat("%s is %g, want %g to %g", PathOf(name), number, low, high));
  }
  return std::optional<double>(number);
}

absl::StatusOr<std::optional<int64_t>> JsonFields::Integer(const char* name, int64_t low, int64_t high) const {
  const Json* const value = Find(name);
  if (value == nullptr) return std::optional<int64_t>();
  if (!value->is_number()) return WrongType(name, *value, "a whole number");
  const auto out_of_range = [&] {
    return FieldError(PathOf(name), absl::StrFormat("%s is %s, want %d to %d", PathOf(name), Dump(*value), low, high));
  };
  if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return out_of_range();
  int64_t number = 0;
  if (value->is_number_float()) {
    const double real = value->get<double>();
    if (!(std::abs(real) <= 9e15)) return out_of_range();  // beyond it not every whole number is one
    if (real != std::floor(real)) return WrongType(name, *value, "a whole number");
    number = static_cast<int64_t>(real);
  } else {
    number = value->get<int64_t>();
  }
  if (number < low || number > high) return out_of_range();
  return std::optional<int64_t>(number);
}

absl::StatusOr<std::optional<std::string>> JsonFields::String(const char* name) const {
  const Json* const value = Find(name);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongType(name, *value, "a string");
  return std::optional<std::string>(value->get<std::string>());
}

absl::StatusOr<const Json*> JsonFields::Object(const char* name) const {
  const Json* const value = Find(name);
  if (value != nullptr && !value->is_object()) return WrongType(name, *value, "an object");
  return value;
}

absl::StatusOr<const Json*> JsonFields::Array(const char* name) const {
  const Json* const value = Find(name);
  if (value != nullptr && !value->is_array()) return WrongType(name, *value, "an array");
  return value;
}

absl::StatusOr<std::vector<std::string>> JsonFields::Strings(const char* name, size_t most) const {
  std::vector<std::string> strings;
  const Json* const value = Find(name);
  if (value == nullptr) return strings;
  if (value->is_string()) return std::vector<std::string>{value->get<std::string>()};
  if (!value->is_array()) return WrongType(name, *value, "a string or an array of strings");
  if (value->size() > most) {
    return FieldError(PathOf(name), absl::StrFormat("%s has %d strings, want at most %d", PathOf(name), value->size(), most));
  }
  for (const Json& entry : *value) {
    if (!entry.is_string()) return WrongType(name, entry, "a string or an array of strings");
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

std::string DescribeType(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "true or false";
    default:
      return value.is_number_float() ? "a number with a fraction" : "a number";
  }
}

}  // namespace ferry
