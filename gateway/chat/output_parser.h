#pragma once

// What a model writes, as what a client is sent: reasoning, content and tool calls, while it is written.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

// One token of the output.
struct OutputToken {
  int32_t id;
  // What the token adds to the output's text: bytes, which need not be whole characters. Of a special token it may be
  // empty: those that a format gives a meaning are known by their ids.
  std::string_view text;
};

struct OutputEvent {
  enum class Kind {
    kReasoning,          // more `text` of the reasoning
    kContent,            // more `text` of the answer
    kToolCallStart,      // a call of the function `name`
    kToolCallArguments,  // more `text` of its arguments, which are JSON when nothing went wrong
    kToolCallEnd,        // `arguments_valid`
  };

  Kind kind;
  std::string text = "";        // whole characters; never empty
  int tool_call = -1;           // kToolCall...: which call of this output, from 0; a call ends before the next one starts
  std::string name = "";        // kToolCallStart; empty where the model gave none
  std::string id = "";          // kToolCallStart: as the model wrote it; empty where the format has none, the caller makes one
  bool arguments_valid = true;  // kToolCallEnd: the arguments together are a JSON object
  bool is_preamble = false;     // kContent: said before tool calls, in harmony's channel "commentary"

  bool operator==(const OutputEvent&) const = default;
};

// Of one output. It takes any tokens: what does not follow the format becomes content or reasoning, and nothing that the
// model wrote is lost but the format's own tags, headers and the white space around them. Used by one thread.
class OutputParser {
 public:
  virtual ~OutputParser() = default;

  // The next tokens of the output, and what they tell. Text that may be the beginning of a tag is held back.
  virtual std::vector<OutputEvent> Feed(std::span<const OutputToken> tokens) = 0;

  // The output has ended, by a stop token or by its length. Returns the text held back, and the end of an open call.
  // Neither method is called after this.
  virtual std::vector<OutputEvent> Finish() = 0;
};

}  // namespace ferry
