#pragma once

// Server-sent events as text.

#include <string>

namespace ferry {

inline constexpr char kSseContentType[] = "text/event-stream; charset=utf-8";

// `data` is one line: JSON without line breaks.
inline std::string SseEvent(const std::string& data) { return "data: " + data + "\n\n"; }
inline std::string SseEvent(const std::string& event, const std::string& data) {
  return "event: " + event + "\ndata: " + data + "\n\n";
}

}  // namespace ferry
