#pragma once

// Conversations in harmony, the format of gpt-oss:
//
//   <|start|>system<|message|>identity, date, reasoning effort, channels<|end|>
//   <|start|>developer<|message|># Instructions ... # Tools ... # Response Formats ...<|end|>
//   <|start|>user<|message|>...<|end|>
//   <|start|>assistant<|channel|>analysis<|message|>...<|end|>
//   <|start|>assistant to=functions.NAME<|channel|>commentary <|constrain|>json<|message|>{...}<|call|>
//   <|start|>functions.NAME to=assistant<|channel|>commentary<|message|>...<|end|>
//   <|start|>assistant<|channel|>final<|message|>...<|end|>
//   <|start|>assistant
//
// System and developer messages of a request become the developer message. The reasoning of an answer is left out once a
// final answer follows it; between the tool calls of a turn that is not finished it stays.

#include "common/status.h"
#include "gateway/chat/chat_format.h"

namespace ferry {

// InvalidArgument names the field.
absl::StatusOr<ChatPrompt> RenderHarmony(const ChatRequest& request);

}  // namespace ferry
