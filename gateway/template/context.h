#pragma once

// What filters, tests, methods and functions of a template see, and how they are called.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "gateway/template/value.h"

namespace ferry::jinja {

struct Context {
  Heap& heap;
  absl::Time now;

  Budget& budget() { return heap.budget(); }
};

// The arguments of one call, taken by position or name.
class Arguments {
 public:
  Arguments() = default;
  Arguments(std::vector<Value> positional, std::vector<std::pair<std::string, Value>> keywords)
      : positional_(std::move(positional)), keywords_(std::move(keywords)) {}

  // The argument at `position`, or else the one called `name`; null: neither was given. An empty name: by position alone.
  const Value* Get(size_t position, std::string_view name = "");
  // The same of one type. InvalidArgument: another was given.
  absl::StatusOr<int64_t> GetInteger(size_t position, std::string_view name, int64_t otherwise);
  absl::StatusOr<bool> GetBool(size_t position, std::string_view name, bool otherwise);
  // Null: not given, or none.
  absl::StatusOr<const MarkedString*> GetString(size_t position, std::string_view name);

  // InvalidArgument: an argument was given that no Get asked for.
  absl::Status CheckAllUsed() const;

  // Without the first `count` positional arguments.
  Arguments Without(size_t count) const;
  const std::vector<Value>& positional() const { return positional_; }
  const std::vector<std::pair<std::string, Value>>& keywords() const { return keywords_; }
  // All of them are known.
  void UseAllPositional() { used_positional_ = positional_.size(); }
  void UseKeywords();

 private:
  std::vector<Value> positional_;
  std::vector<std::pair<std::string, Value>> keywords_;
  size_t used_positional_ = 0;
  std::vector<std::string> used_keywords_;
};

// Each returns InvalidArgument where Python would raise.
absl::StatusOr<Value> ApplyFilter(Context& context, std::string_view name, const Value& value, Arguments& arguments);
absl::StatusOr<bool> ApplyTest(Context& context, std::string_view name, const Value& value, Arguments& arguments);
bool HasMethod(const Value& self, std::string_view name);
absl::StatusOr<Value> CallMethod(Context& context, const Value& self, std::string_view name, Arguments& arguments);
bool IsFunction(std::string_view name);  // namespace, range, dict, raise_exception, strftime_now
absl::StatusOr<Value> CallFunction(Context& context, std::string_view name, Arguments& arguments);

}  // namespace ferry::jinja
