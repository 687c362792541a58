#include "coordinator/text/utf8.h"

#include <cstdint>

namespace ferry {

Utf8Prefix FirstOfUtf8(std::string_view text) {
  const uint8_t lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {Utf8Kind::kCharacter, 1, lead};
  // The second byte's range excludes overlong forms, surrogates and code points above U+10FFFF; later ones are free.
  uint8_t second_min = 0x80, second_max = 0xBF;
  size_t length;
  char32_t code_point;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) second_min = 0xA0;
    if (lead == 0xED) second_max = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) second_min = 0x90;
    if (lead == 0xF4) second_max = 0x8F;
  } else {
    return {Utf8Kind::kInvalid, 1, 0};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i, 0};
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const uint8_t min = i == 1 ? second_min : 0x80, max = i == 1 ? second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (byte & 0x3F);
  }
  return {Utf8Kind::kCharacter, length, code_point};
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Prefix first = FirstOfUtf8(text);
    if (first.kind != Utf8Kind::kCharacter) return false;
    text.remove_prefix(first.bytes);
  }
  return true;
}

void AppendUtf8(char32_t code_point, std::string* text) {
  if (code_point < 0x80) {
    text->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    text->push_back(static_cast<char>(0xC0 | code_point >> 6));
    text->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else if (code_point < 0x10000) {
    text->push_back(static_cast<char>(0xE0 | code_point >> 12));
    text->push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    text->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else {
    text->push_back(static_cast<char>(0xF0 | code_point >> 18));
    text->push_back(static_cast<char>(0x80 | (code_point >> 12 & 0x3F)));
    text->push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    text->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  }
}

void AppendWithReplacements(std::string_view text, std::string* out) {
  while (!text.empty()) {
    const Utf8Prefix first = FirstOfUtf8(text);
    out->append(first.kind == Utf8Kind::kCharacter ? text.substr(0, first.bytes) : kReplacementCharacter);
    text.remove_prefix(first.bytes);
  }
}

std::string WithReplacements(std::string_view text) {
  std::string result;
  AppendWithReplacements(text, &result);
  return result;
}

}  // namespace ferry
