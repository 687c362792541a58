#pragma once

// Outputs in harmony as tokens.

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/chat/output_parser.h"

namespace ferry {

inline const std::map<std::string, int32_t>& HarmonyIds() {
  static const auto& ids =
      *new std::map<std::string, int32_t>{{"<|start|>", 1},     {"<|end|>", 2},  {"<|message|>", 3}, {"<|channel|>", 4},
                                          {"<|constrain|>", 5}, {"<|call|>", 6}, {"<|return|>", 7}};
  return ids;
}

// An output as it is written for people: harmony's tokens by their ids, all other text in tokens of `bytes`.
inline std::vector<OutputToken> HarmonyOutput(std::string_view text, size_t bytes) {
  std::vector<OutputToken> tokens;
  while (!text.empty()) {
    const auto special =
        std::find_if(HarmonyIds().begin(), HarmonyIds().end(), [&](const auto& known) { return text.starts_with(known.first); });
    const bool is_text = special == HarmonyIds().end();
    const size_t size = is_text ? std::min({bytes, text.size(), text.find("<|", 1)}) : special->first.size();
    tokens.push_back(is_text ? OutputToken{100, text.substr(0, size)} : OutputToken{special->second, ""});
    text.remove_prefix(size);
  }
  return tokens;
}

}  // namespace ferry
