#pragma once

// Bytes as whole UTF-8 characters: one whose last bytes are missing waits for them.

#include <string>
#include <string_view>

namespace ferry {

class WholeCharacters {
 public:
  // The characters that `bytes` complete; what can never become one is replaced by U+FFFD.
  std::string Push(std::string_view bytes);
  // What waits, as U+FFFD.
  std::string Flush();

 private:
  std::string waiting_;
};

}  // namespace ferry
