#include "coordinator/text/detokenizer.h"

#include "coordinator/text/utf8.h"

namespace ferry {

std::string Detokenizer::Push(int32_t id) {
  if (tokenizer_.IsSpecial(id) && !render_special_) return "";
  held_ += tokenizer_.TokenBytes(id);
  std::string text;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Prefix first = FirstOfUtf8(rest);
    if (first.kind == Utf8Kind::kIncomplete) break;
    text += first.kind == Utf8Kind::kCharacter ? rest.substr(0, first.bytes) : kReplacementCharacter;
    rest.remove_prefix(first.bytes);
  }
  held_ = std::string(rest);
  return text;
}

std::string Detokenizer::Flush() {
  std::string text;
  AppendWithReplacements(held_, &text);
  held_.clear();
  return text;
}

}  // namespace ferry
