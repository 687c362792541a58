#include "gateway/template/context.h"

#include <algorithm>

namespace ferry::jinja {

const Value* Arguments::Get(size_t position, std::string_view name) {
  if (position < positional_.size()) {
    used_positional_ = std::max(used_positional_, position + 1);
    return &positional_[position];
  }
  if (name.empty()) return nullptr;
  for (const auto& [keyword, value] : keywords_) {
    if (keyword != name) continue;
    used_keywords_.emplace_back(name);
    return &value;
  }
  return nullptr;
}

absl::StatusOr<int64_t> Arguments::GetInteger(size_t position, std::string_view name, int64_t otherwise) {
  const Value* value = Get(position, name);
  if (value == nullptr) return otherwise;
  if (!value->IsInteger()) return InvalidArgument("the argument '%s' is a %s, want an int", name, value->TypeName());
  return value->integer();
}

absl::StatusOr<bool> Arguments::GetBool(size_t position, std::string_view name, bool otherwise) {
  const Value* value = Get(position, name);
  return value == nullptr ? otherwise : value->Truth();
}

absl::StatusOr<const MarkedString*> Arguments::GetString(size_t position, std::string_view name) {
  const Value* value = Get(position, name);
  if (value == nullptr || value->IsNone()) return nullptr;
  if (!value->IsString()) return InvalidArgument("the argument '%s' is a %s, want a str", name, value->TypeName());
  return value->string();
}

absl::Status Arguments::CheckAllUsed() const {
  if (used_positional_ < positional_.size()) {
    return InvalidArgument("%d arguments where at most %d are taken", positional_.size(), used_positional_);
  }
  for (const auto& [keyword, value] : keywords_) {
    if (std::find(used_keywords_.begin(), used_keywords_.end(), keyword) == used_keywords_.end()) {
      return InvalidArgument("there is no argument '%s', or it is given twice", keyword);
    }
  }
  return absl::OkStatus();
}

Arguments Arguments::Without(size_t count) const {
  count = std::min(count, positional_.size());
  return Arguments(std::vector<Value>(positional_.begin() + static_cast<ptrdiff_t>(count), positional_.end()), keywords_);
}

void Arguments::UseKeywords() {
  for (const auto& [keyword, value] : keywords_) used_keywords_.push_back(keyword);
}

}  // namespace ferry::jinja
