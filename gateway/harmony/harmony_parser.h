#pragma once

// What gpt-oss writes, by its token ids: a state machine that takes any tokens. A header that is malformed costs the
// turn nothing: what can be told from it is taken, and the rest is text.

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "gateway/chat/chat_format.h"
#include "gateway/chat/output_parser.h"
#include "gateway/parsers/whole_characters.h"

namespace ferry {

// The ids of harmony's tokens in a vocabulary.
struct HarmonyTokens {
  int32_t start, end, message, channel, constrain, call, ret;  // ret: <|return|>

  // Nothing where the vocabulary lacks one of them.
  static std::optional<HarmonyTokens> Find(const SpecialTokens& special_tokens);
};

// What the header of a message says.
struct HarmonyHeader {
  enum class Channel { kAnalysis, kCommentary, kFinal };
  Channel channel = Channel::kAnalysis;
  std::optional<std::string> function;  // the call's

  // `role`, `channel` and `content_type` are the header's texts before <|channel|>, behind it, and behind <|constrain|>.
  // The channel is the last known word, analysis without one. The function is the first recipient ("to=..."), where it
  // is one of `functions` or is in the namespace "functions"; a "json" that is glued to an unknown name is taken off.
  static HarmonyHeader Parse(std::string_view role, std::string_view channel, const std::set<std::string>& functions);
};

class HarmonyParser final : public OutputParser {
 public:
  // The prompt ended with "<|start|>assistant".
  HarmonyParser(const HarmonyTokens& tokens, std::set<std::string> functions)
      : tokens_(tokens), functions_(std::move(functions)) {}

  std::vector<OutputEvent> Feed(std::span<const OutputToken> tokens) override;
  std::vector<OutputEvent> Finish() override;

 private:
  enum class State { kRole, kChannel, kContentType, kContent };

  void Take(const OutputToken& token);
  void TakeText(std::string_view text);
  void BeginHeader(State state);
  void OpenMessage();
  void StartCall();
  void EndMessage();  // whatever state it is in
  void CloseMessage();
  void LeaveHeader();
  void Emit(OutputEvent event) { events_.push_back(std::move(event)); }
  void EmitText(std::string text);

  const HarmonyTokens tokens_;
  const std::set<std::string> functions_;
  State state_ = State::kRole;
  std::string role_, channel_, content_type_;  // of the header being read
  HarmonyHeader header_;                       // of the open message
  WholeCharacters characters_;
  std::string arguments_;  // of the open call
  int num_calls_ = 0;
  std::vector<OutputEvent> events_;
};

}  // namespace ferry
