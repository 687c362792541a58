#include "gateway/harmony/harmony_parser.h"

#include <utility>

namespace ferry {
namespace {

// A header is longer than this only where the model forgot to end it.
constexpr size_t kMaxHeaderBytes = 512;
constexpr std::string_view kNamespace = "functions.";

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// The words of a header's part.
std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && IsSpace(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !IsSpace(text[i])) ++i;
    if (i > begin) words.push_back(text.substr(begin, i - begin));
  }
  return words;
}

std::optional<HarmonyHeader::Channel> ChannelNamed(std::string_view word) {
  if (word == "analysis") return HarmonyHeader::Channel::kAnalysis;
  if (word == "commentary") return HarmonyHeader::Channel::kCommentary;
  if (word == "final") return HarmonyHeader::Channel::kFinal;
  return std::nullopt;
}

// The function that a recipient names, if any.
std::optional<std::string> FunctionNamed(std::string_view recipient, const std::set<std::string>& functions) {
  const bool in_namespace = recipient.starts_with(kNamespace);
  std::string name(in_namespace ? recipient.substr(kNamespace.size()) : recipient);
  if (functions.contains(name)) return name;
  if (name.ends_with("json") && functions.contains(name.substr(0, name.size() - 4))) return name.substr(0, name.size() - 4);
  if (in_namespace && !name.empty()) return name;
  return std::nullopt;
}

}  // namespace

std::optional<HarmonyTokens> HarmonyTokens::Find(const SpecialTokens& special_tokens) {
  HarmonyTokens tokens;
  const std::pair<const char*, int32_t*> wanted[] = {
      {"<|start|>", &tokens.start},         {"<|end|>", &tokens.end},
      {"<|message|>", &tokens.message},     {"<|channel|>", &tokens.channel},
      {"<|constrain|>", &tokens.constrain}, {"<|call|>", &tokens.call},
      {"<|return|>", &tokens.ret},
  };
  for (const auto& [text, id] : wanted) {
    const std::optional<int32_t> found = special_tokens.Find(text);
    if (!found) return std::nullopt;
    *id = *found;
  }
  return tokens;
}

HarmonyHeader HarmonyHeader::Parse(std::string_view role, std::string_view channel, const std::set<std::string>& functions) {
  HarmonyHeader header;
  bool has_recipient = false;
  for (const std::string_view part : {role, channel}) {
    for (const std::string_view word : Words(part)) {
      if (const std::optional<Channel> named = ChannelNamed(word)) header.channel = *named;
      if (!word.starts_with("to=") || has_recipient) continue;
      has_recipient = true;
      header.function = FunctionNamed(word.substr(3), functions);
    }
  }
  return header;
}

std::vector<OutputEvent> HarmonyParser::Feed(std::span<const OutputToken> tokens) {
  for (const OutputToken& token : tokens) Take(token);
  return std::exchange(events_, {});
}

std::vector<OutputEvent> HarmonyParser::Finish() {
  EndMessage();
  return std::exchange(events_, {});
}

void HarmonyParser::Take(const OutputToken& token) {
  const bool in_content = state_ == State::kContent;
  if (token.id == tokens_.start) {
    EndMessage();
    BeginHeader(State::kRole);
  } else if (token.id == tokens_.channel) {
    if (in_content) {
      CloseMessage();
      BeginHeader(State::kChannel);
    }
    state_ = State::kChannel;
  } else if (token.id == tokens_.constrain) {
    if (!in_content) state_ = State::kContentType;
  } else if (token.id == tokens_.message) {
    if (!in_content) OpenMessage();
  } else if (token.id == tokens_.end || token.id == tokens_.call || token.id == tokens_.ret) {
    EndMessage();
    BeginHeader(State::kRole);
  } else {
    TakeText(token.text);
  }
}

void HarmonyParser::TakeText(std::string_view text) {
  switch (state_) {
    case State::kRole:
      role_ += text;
      break;
    case State::kChannel:
      channel_ += text;
      break;
    case State::kContentType:
      content_type_ += text;
      break;
    case State::kContent:
      EmitText(characters_.Push(text));
      return;
  }
  if (role_.size() + channel_.size() + content_type_.size() > kMaxHeaderBytes) LeaveHeader();
}

void HarmonyParser::BeginHeader(State state) {
  state_ = state;
  role_.clear();
  channel_.clear();
  content_type_.clear();
}

void HarmonyParser::OpenMessage() {
  header_ = HarmonyHeader::Parse(role_, channel_, functions_);
  state_ = State::kContent;
  if (header_.function) StartCall();
}

void HarmonyParser::StartCall() {
  state_ = State::kContent;
  arguments_.clear();
  Emit({.kind = OutputEvent::Kind::kToolCallStart, .tool_call = num_calls_, .name = *header_.function});
}

void HarmonyParser::EndMessage() {
  if (state_ != State::kContent) LeaveHeader();
  if (state_ == State::kContent) CloseMessage();
}

void HarmonyParser::CloseMessage() {
  EmitText(characters_.Flush());
  if (!header_.function) return;
  const bool valid = Json::parse(arguments_, nullptr, /*allow_exceptions=*/false).is_object();
  Emit({.kind = OutputEvent::Kind::kToolCallEnd, .tool_call = num_calls_++, .arguments_valid = valid});
  header_.function.reset();
}

// A header that no <|message|> ends. The words that a header has are dropped, and the rest is the message's text: without
// a channel the answer, as a model writes that knows nothing of headers.
void HarmonyParser::LeaveHeader() {
  header_ = HarmonyHeader::Parse(role_, channel_, functions_);
  std::string_view rest;
  std::string text;
  bool has_channel = false;
  for (const std::string* part : {&role_, &channel_, &content_type_}) {
    rest = *part;
    while (true) {
      const std::vector<std::string_view> words = Words(rest);
      if (words.empty()) {
        rest = {};
        break;
      }
      const std::string_view word = words[0];
      const bool glued = part == &content_type_ && word.starts_with("json{");
      const bool known = word == "assistant" || word == "json" || word.starts_with("to=") || ChannelNamed(word) || glued;
      if (!known) break;
      if (glued) {
        rest.remove_prefix(static_cast<size_t>(word.data() + 4 - rest.data()));
        break;
      }
      has_channel = has_channel || ChannelNamed(word);
      rest.remove_prefix(static_cast<size_t>(word.data() + word.size() - rest.data()));
    }
    text += rest;
  }
  if (!has_channel) header_.channel = HarmonyHeader::Channel::kFinal;
  BeginHeader(State::kRole);
  const size_t begin = text.find_first_not_of(" \t\r\n");
  // A call whose <|message|> is missing begins with its arguments' bracket.
  const bool is_call = header_.function && begin != std::string::npos && text[begin] == '{';
  if (!is_call) header_.function.reset();
  if (text.empty()) return;
  state_ = State::kContent;
  if (is_call) StartCall();
  EmitText(characters_.Push(text));
}

void HarmonyParser::EmitText(std::string text) {
  if (text.empty()) return;
  if (header_.function) {
    arguments_ += text;
    Emit({.kind = OutputEvent::Kind::kToolCallArguments, .text = std::move(text), .tool_call = num_calls_});
  } else if (header_.channel == HarmonyHeader::Channel::kAnalysis) {
    Emit({.kind = OutputEvent::Kind::kReasoning, .text = std::move(text)});
  } else {
    const bool is_preamble = header_.channel == HarmonyHeader::Channel::kCommentary;
    Emit({.kind = OutputEvent::Kind::kContent, .text = std::move(text), .is_preamble = is_preamble});
  }
}

}  // namespace ferry
