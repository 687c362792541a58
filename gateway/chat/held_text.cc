#include "gateway/chat/held_text.h"

#include <algorithm>
#include <utility>

namespace ferry {

size_t TagBeginning(std::string_view text, std::string_view tag) {
  for (size_t bytes = std::min(text.size(), tag.size() - 1); bytes > 0; --bytes) {
    if (text.ends_with(tag.substr(0, bytes))) return bytes;
  }
  return 0;
}

HeldText::Found HeldText::Take(std::span<const std::string_view> tags, bool at_end) {
  size_t begin = std::string::npos;
  int first = -1;
  for (size_t i = 0; i < tags.size(); ++i) {
    const size_t at = text_.find(tags[i]);
    if (at == std::string::npos || at > begin) continue;
    if (at == begin && tags[i].size() <= tags[static_cast<size_t>(first)].size()) continue;
    begin = at;
    first = static_cast<int>(i);
  }
  if (first >= 0) {
    Found found{text_.substr(0, begin), first};
    text_.erase(0, begin + tags[static_cast<size_t>(first)].size());
    return found;
  }
  size_t held = 0;
  for (const std::string_view tag : tags) held = std::max(held, at_end ? 0 : TagBeginning(text_, tag));
  Found found{text_.substr(0, text_.size() - held)};
  text_.erase(0, text_.size() - held);
  return found;
}

std::string HeldText::TakeAll() { return std::exchange(text_, {}); }

bool HeldText::SkipSpace() {
  text_.erase(0, std::min(text_.find_first_not_of(" \t\r\n"), text_.size()));
  return !text_.empty();
}

}  // namespace ferry
