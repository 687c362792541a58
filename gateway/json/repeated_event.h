#pragma once

// Events of a stream that differ in one string alone, such as the pieces of a text. The JSON around the string is made once.

#include <functional>
#include <string>
#include <string_view>

namespace ferry {

class RepeatedEvent {
 public:
  // The event of `text`: what `make` returns for it. `make` writes its argument as a JSON string, once, and all else as the time
  // before.
  std::string Of(std::string_view text, const std::function<std::string(const std::string& text)>& make);
  // What `make` writes around the text has changed.
  void Forget() { made_ = false; }

 private:
  bool made_ = false;
  bool cut_ = false;  // before_ and behind_ are the JSON around the string; else `make` makes every event
  std::string before_, behind_;
};

// Appends `text` as a JSON string, as Dump writes it.
void AppendJsonString(std::string_view text, std::string* to);

}  // namespace ferry
