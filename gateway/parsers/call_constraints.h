#pragma once

// The calls of a rule's tools as the syntaxes of this folder read them: one call, or several where the rule allows it.
//
// InvalidArgument: the parameters of a tool cannot be held to their schema in this syntax; the message begins with "tools:".

#include "common/status.h"
#include "gateway/chat/answer_rule.h"

namespace ferry {

absl::StatusOr<v1::Constraint> JsonCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens);
absl::StatusOr<v1::Constraint> GlmCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens);
absl::StatusOr<v1::Constraint> QwenXmlCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens);
// `fenced`: DeepSeek-V3's, newer models have no fence.
absl::StatusOr<v1::Constraint> DeepSeekCallsUnder(const AnswerRule& rule, bool fenced, const SpecialTokens& special_tokens);
absl::StatusOr<v1::Constraint> KimiCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens);

}  // namespace ferry
