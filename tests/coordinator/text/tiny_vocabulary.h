#pragma once

// Vocabularies small enough to read, for tests of text.

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/utf8.h"
#include "coordinator/text/vocabulary.h"

namespace ferry {

// Ids 0 to 255 are the bytes; then one token for each merge, in order ("h e" makes "he"; "Ġ" is the space); then the
// special tokens with their types.
inline VocabularyData TinyVocabulary(std::initializer_list<std::string_view> merges,
                                     std::initializer_list<std::pair<std::string_view, TokenType>> specials = {}) {
  VocabularyData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  for (int byte = 0; byte < 256; ++byte) {
    data.tokens.emplace_back();
    AppendUtf8(AlphabetOfByte(static_cast<uint8_t>(byte)), &data.tokens.back());
  }
  for (const std::string_view merge : merges) {
    data.merges.emplace_back(merge);
    const size_t space = merge.find(' ');
    data.tokens.push_back(std::string(merge.substr(0, space)) + std::string(merge.substr(space + 1)));
  }
  data.token_types.assign(data.tokens.size(), static_cast<int64_t>(TokenType::kNormal));
  for (const auto& [text, type] : specials) {
    data.tokens.emplace_back(text);
    data.token_types.push_back(static_cast<int64_t>(type));
  }
  return data;
}

}  // namespace ferry
