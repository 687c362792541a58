#pragma once

// Templates for model files that carry none, written from the descriptions of the families' formats.

#include <optional>
#include <string>
#include <string_view>

#include "gateway/chat/chat_format.h"

namespace ferry {

// The family is told by the special tokens of its vocabulary, for several share an architecture:
//
//   Kimi-K2         <|im_middle|>
//   DeepSeek-V3.1   <｜tool▁calls▁begin｜> and <｜search▁begin｜>; without the latter DeepSeek-V3
//   GLM-4.5         [gMASK]
//   Qwen            <|im_start|> and <tool_call>: by `architecture` Qwen3.5 (qwen35moe), Qwen3-Next (qwen3next), else Qwen3
//
// Nothing where none of them fits. Harmony is not among them: it has no template.
std::optional<std::string> FamilyTemplate(std::string_view architecture, const SpecialTokens& special_tokens);

}  // namespace ferry
