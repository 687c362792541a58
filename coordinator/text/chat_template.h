#pragma once

// A conversation as the tokens of a prompt, in the "harmony" format of gpt-oss:
//
//   <|start|>ROLE<|message|>CONTENT<|end|>   for every message, then <|start|>assistant[<|channel|>CHANNEL<|message|>]
//
// Made token by token, not by rendering text that is parsed again: what a message says can never become a control
// token.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "coordinator/text/tokenizer.h"

namespace ferry {

struct ChatMessage {
  std::string role;  // "system", "developer", "user", "assistant"
  std::string content;
};

// The prompt after which the assistant's answer follows. `channel` "final" makes it answer at once; empty leaves the
// choice of channel to the model (gpt-oss then reasons in "analysis" first). Begins with BOS where the file asks for
// it. Unimplemented: the vocabulary lacks one of the harmony tokens, which the message names. InvalidArgument: a role
// is empty, or as Tokenizer::Encode.
absl::StatusOr<std::vector<int32_t>> EncodeHarmonyChat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                                       std::string_view channel);

}  // namespace ferry
