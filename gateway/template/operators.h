#pragma once

// Python's operators on values. Each returns InvalidArgument where Python would raise.

#include <string_view>
#include <vector>

#include "common/status.h"
#include "gateway/template/value.h"

namespace ferry::jinja {

// op: + - * / // % **
absl::StatusOr<Value> Arithmetic(Heap& heap, std::string_view op, const Value& left, const Value& right);
absl::StatusOr<Value> Negative(const Value& value);

absl::StatusOr<bool> Equal(const Value& left, const Value& right, Budget* budget, int depth = 0);
// Less than zero: `left` comes first. Numbers, strings, and lists of these.
absl::StatusOr<int> Order(const Value& left, const Value& right, Budget* budget, int depth = 0);
absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget);

// What a for loop goes through: elements, keys, characters; nothing in undefined.
absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value);
absl::StatusOr<int64_t> Length(const Value& value);

// container[key]; undefined where there is none.
absl::StatusOr<Value> Subscript(Heap& heap, const Value& container, const Value& key);
// object.name, methods first; undefined where there is none.
absl::StatusOr<Value> Attribute(Heap& heap, const Value& object, std::string_view name);
// container[begin:end:step]; none for an index that is not given.
absl::StatusOr<Value> Slice(Heap& heap, const Value& container, const Value& begin, const Value& end, const Value& step);
// A path of names and indices with dots between them, as filters take it: "function.name".
absl::StatusOr<Value> AttributePath(Heap& heap, Value value, const Value& path);

}  // namespace ferry::jinja
