#include "gateway/parsers/whole_characters.h"

#include "coordinator/text/utf8.h"

namespace ferry {

std::string WholeCharacters::Push(std::string_view bytes) {
  waiting_ += bytes;
  std::string whole;
  std::string_view rest = waiting_;
  while (!rest.empty()) {
    const Utf8Prefix first = FirstOfUtf8(rest);
    if (first.kind == Utf8Kind::kIncomplete) break;
    whole += first.kind == Utf8Kind::kCharacter ? rest.substr(0, first.bytes) : kReplacementCharacter;
    rest.remove_prefix(first.bytes);
  }
  waiting_ = std::string(rest);
  return whole;
}

std::string WholeCharacters::Flush() {
  std::string text;
  AppendWithReplacements(waiting_, &text);
  waiting_.clear();
  return text;
}

}  // namespace ferry
