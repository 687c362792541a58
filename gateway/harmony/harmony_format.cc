#include "gateway/harmony/harmony_format.h"

#include <utility>

#include "gateway/chat/answer_rule.h"
#include "gateway/chat/messages.h"
#include "gateway/harmony/harmony_renderer.h"

namespace ferry {
namespace {

using parts::AnyOf;
using parts::Literal;
using parts::Optional;
using parts::Repeat;
using parts::Sequence;
using parts::Text;

// The messages of an answer, as the model writes them behind "<|start|>assistant".
class HarmonyMessages {
 public:
  explicit HarmonyMessages(const HarmonyTokens& tokens) : tokens_(tokens) {}

  // A message that others follow.
  v1::Constraint Passing(std::string_view channel) const {
    return Sequence({Token(tokens_.channel), Literal(channel), Token(tokens_.message), Text(), Token(tokens_.end),
                     Token(tokens_.start), Literal("assistant")});
  }
  v1::Constraint Final(const std::optional<v1::Constraint>& content) const {
    return Sequence({Token(tokens_.channel), Literal("final"), content ? Type() : Literal(""), Token(tokens_.message),
                     content ? *content : Text()});
  }
  // The recipient comes with the role or with the channel.
  v1::Constraint Call(const AnswerRule& rule, const AnswerRule::Tool& tool) const {
    const std::string recipient = " to=functions." + tool.name;
    return Sequence({AnyOf({Sequence({Literal(recipient), Token(tokens_.channel), Literal("commentary")}),
                            Sequence({Token(tokens_.channel), Literal("commentary" + recipient)})}),
                     Type(), Token(tokens_.message), parts::Arguments(rule, tool)});
  }

 private:
  static v1::Constraint Token(int32_t id) {
    v1::Constraint part;
    part.set_token(static_cast<uint32_t>(id));
    return part;
  }
  v1::Constraint Type() const {
    return AnyOf({Literal(""), Literal(" json"), Sequence({Optional(Literal(" ")), Token(tokens_.constrain), Literal("json")})});
  }

  const HarmonyTokens tokens_;
};

}  // namespace

absl::StatusOr<ChatPrompt> HarmonyFormat::Render(const ChatRequest& request) const { return RenderHarmony(request); }

absl::StatusOr<v1::Constraint> HarmonyFormat::Constrain(const ChatRequest&, const ChatPrompt&, const AnswerRule& rule) const {
  const HarmonyMessages messages(tokens_);
  std::vector<v1::Constraint> before = {messages.Passing("analysis")};
  // A preamble is content: it has no place beside content that has a form.
  if (!rule.content) before.push_back(messages.Passing("commentary"));
  std::vector<v1::Constraint> last;
  if (!rule.requires_call) last.push_back(messages.Final(rule.content));
  for (const AnswerRule::Tool& tool : rule.tools) last.push_back(messages.Call(rule, tool));
  return Sequence({Repeat(AnyOf(std::move(before)), 0), AnyOf(std::move(last))});
}

std::unique_ptr<OutputParser> HarmonyFormat::NewParser(const ChatRequest& request, const ChatPrompt&) const {
  return std::make_unique<HarmonyParser>(tokens_, FunctionNames(request.tools));
}

}  // namespace ferry
