#include "gateway/json/repeated_event.h"

#include <algorithm>

#include "gateway/json/json.h"

namespace ferry {
namespace {

// Marks the place of the text, where an event is cut. If a model's name has it too, nothing is cut.
constexpr char kText[] = "\"what-a-stream-says-6f1d0c9b\"";

}  // namespace

void AppendJsonString(std::string_view text, std::string* to) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; });
  if (!plain) {
    *to += Dump(Json(text));
    return;
  }
  to->push_back('"');
  to->append(text);
  to->push_back('"');
}

std::string RepeatedEvent::Of(std::string_view text, const std::function<std::string(const std::string& text)>& make) {
  if (!made_) {
    const std::string_view mark = kText;
    const std::string event = make(std::string(mark.substr(1, mark.size() - 2)));
    const size_t at = event.find(mark);
    cut_ = at != std::string::npos && event.find(mark, at + 1) == std::string::npos;
    if (cut_) {
      before_ = event.substr(0, at);
      behind_ = event.substr(at + mark.size());
    }
    made_ = true;
  }
  if (!cut_) return make(std::string(text));
  std::string event;
  event.reserve(before_.size() + text.size() + behind_.size() + 2);
  event = before_;
  AppendJsonString(text, &event);
  event += behind_;
  return event;
}

}  // namespace ferry
