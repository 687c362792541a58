#include "gateway/chat/chat_format.h"

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "coordinator/generation/output_constraint.h"
#include "gateway/chat/answer_rule.h"
#include "tests/chat/families.h"
#include "tests/chat/harmony_output.h"
#include "tests/chat/parsing.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

class FamilyTest : public testing::TestWithParam<Family> {
 protected:
  FamilyTest() : tokens_(GetParam().tokens.empty() ? FakeSpecialTokens(HarmonyIds()) : FakeSpecialTokens(GetParam().tokens)) {
    absl::StatusOr<std::unique_ptr<ChatFormat>> format = MakeChatFormat(
        {.architecture = GetParam().architecture, .bos_token = "<s>", .eos_token = "</s>", .special_tokens = &tokens_});
    EXPECT_OK(format);
    format_ = *std::move(format);
    request_.tools = Json::parse(R"([{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters":
        {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}}}])");
  }

  ChatPrompt Render(const char* messages) {
    request_.messages = Json::parse(messages);
    const absl::StatusOr<ChatPrompt> prompt = format_->Render(request_);
    EXPECT_OK(prompt);
    return prompt.value_or(ChatPrompt());
  }

  const FakeSpecialTokens tokens_;
  std::unique_ptr<ChatFormat> format_;
  ChatRequest request_;
};

// What a history shows of an answer is what the model writes, so its parser must read it.
TEST_P(FamilyTest, ReadsCallsAsItWritesThem) {
  const ChatPrompt asked = Render(R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}])");
  request_.add_generation_prompt = false;
  const std::string answered =
      Render(
          R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": null, "reasoning_content": "Adding.",
          "tool_calls": [{"id": "functions.add:0", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"s\": \"x y\"}"}},
                         {"id": "functions.add:1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 2, \"s\": \"\"}"}}]}])")
          .Text();
  // From the first character in which the answer differs from the open prompt.
  const std::string prompt = asked.Text();
  size_t same = 0;
  while (same < prompt.size() && same < answered.size() && prompt[same] == answered[same]) ++same;
  std::string output = answered.substr(same);
  for (const char* end : {"<|im_end|>\n", "<|im_end|>", "</s>"}) {
    if (output.ends_with(end)) output.resize(output.size() - std::string(end).size());
  }
  const std::unique_ptr<OutputParser> parser = format_->NewParser(request_, asked);
  std::vector<OutputEvent> events;
  const bool harmony = format_->name() == "harmony";
  if (harmony) {
    events = parser->Feed(HarmonyOutput(output, 5));
  } else {
    const OutputToken token{0, output};
    events = parser->Feed({&token, 1});
  }
  for (OutputEvent& event : parser->Finish()) events.push_back(std::move(event));
  std::vector<std::string> arguments;
  for (const OutputEvent& event : events) {
    if (event.kind == OutputEvent::Kind::kToolCallStart) {
      EXPECT_EQ(event.name, "add") << output;
      arguments.emplace_back();
    }
    if (event.kind == OutputEvent::Kind::kToolCallArguments) arguments.back() += event.text;
    if (event.kind == OutputEvent::Kind::kToolCallEnd) {
      EXPECT_TRUE(event.arguments_valid) << output;
    }
  }
  ASSERT_EQ(arguments.size(), 2u) << output;
  EXPECT_EQ(Json::parse(arguments[0]), Json::parse(R"({"a": 1, "s": "x y"})"));
  EXPECT_EQ(Json::parse(arguments[1]), Json::parse(R"({"a": 2, "s": ""})"));
}

TEST_P(FamilyTest, WritesEveryMessageAndMarksItsText) {
  const ChatPrompt prompt = Render(R"([{"role": "system", "content": "SYS"}, {"role": "user", "content": "ASK<|im_end|>"},
      {"role": "assistant", "content": "LOOK", "reasoning_content": "WHY", "tool_calls": [{"id": "functions.add:0", "type": "function",
       "function": {"name": "add", "arguments": "{\"a\": 1}"}}]}, {"role": "tool", "tool_call_id": "functions.add:0", "content": "RESULT"},
      {"role": "assistant", "content": "ANSWER"}, {"role": "user", "content": "MORE"}])");
  std::string from_user;
  for (const TextPiece& piece : prompt.pieces) from_user += piece.from_user ? piece.text : "|";
  size_t at = 0;
  for (const char* text : {"SYS", "ASK<|im_end|>", "LOOK", "RESULT", "ANSWER", "MORE"}) {
    const size_t found = from_user.find(text, at);
    ASSERT_NE(found, std::string::npos) << text << " in " << prompt.Text();
    at = found;
  }
  EXPECT_THAT(prompt.Text(), HasSubstr("Adds."));
  EXPECT_THAT(prompt.Text(), Not(HasSubstr("WHY"))) << "a reasoning of an earlier turn";
}

INSTANTIATE_TEST_SUITE_P(All, FamilyTest, testing::ValuesIn(Families()),
                         [](const auto& info) { return std::string(info.param.name); });

// Bytes, the tags of all formats as tokens that are text, and a family's special tokens as control tokens.
class FamilyVocabulary final : public constraint::TokenSource {
 public:
  explicit FamilyVocabulary(const std::map<std::string, int32_t>& special) : tokens_(kBytes) {
    for (const auto& [text, id] : special) controls_.emplace(id, text);
    for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
    for (const char* const tag : {"<think>",
                                  "</think>",
                                  "\n",
                                  "<tool_call>",
                                  "</tool_call>",
                                  "</function>",
                                  "<parameter=",
                                  "</parameter>",
                                  "<arg_key>",
                                  "</arg_key>",
                                  "<arg_value>",
                                  "</arg_value>",
                                  "\n</parameter>",
                                  "\"}",
                                  "\", ",
                                  "\": ",
                                  "commentary",
                                  "analysis",
                                  "final",
                                  "<|tool_calls_section_begin|>",
                                  "<|tool_call_begin|>",
                                  "<|tool_call_argument_begin|>",
                                  "<|tool_call_end|>",
                                  "<|tool_calls_section_end|>",
                                  "<｜tool▁calls▁begin｜>",
                                  "<｜tool▁call▁begin｜>",
                                  "<｜tool▁sep｜>",
                                  "<｜tool▁call▁end｜>",
                                  "<｜tool▁calls▁end｜>",
                                  "\n```"}) {
      tokens_.emplace_back(tag);
    }
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::string_view TokenBytes(int32_t id) const override { return IsControl(id) ? controls_.at(id) : tokens_[id]; }
  bool IsControl(int32_t id) const override { return controls_.contains(id); }
  std::string_view Shown(int32_t id) const { return IsControl(id) ? std::string_view() : tokens_[id]; }

 private:
  static constexpr size_t kBytes = 1000;  // the id of byte 0
  std::map<int32_t, std::string> controls_;
  std::vector<std::string> tokens_;
};

// The parts of an answer.
struct Answer {
  std::string text;  // all of it, as it was drawn
  std::string reasoning, content;
  std::vector<std::pair<std::string, std::string>> calls;  // name and arguments
};

// Outputs that are drawn at random from the tokens that a constraint allows, read by the format's parser.
class ConstrainedTest : public FamilyTest {
 protected:
  ConstrainedTest()
      : ids_(GetParam().tokens.empty() ? HarmonyIds() : std::map<std::string, int32_t>()), vocabulary_([this] {
          for (size_t i = 0; i < GetParam().tokens.size(); ++i) ids_[GetParam().tokens[i]] = 100 + static_cast<int32_t>(i);
          return ids_;
        }()) {}

  void Begin(const AnswerRule& rule) {
    prompt_ = Render(R"([{"role": "user", "content": "1 + 2?"}])");
    const absl::StatusOr<v1::Constraint> constraint = format_->Constrain(request_, prompt_, rule);
    ASSERT_OK(constraint);
    constraint_ = *constraint;
  }

  Answer Draw(int seed) {
    absl::StatusOr<std::unique_ptr<OutputConstraint>> output =
        OutputConstraint::Create(constraint_, vocabulary_.vocab_size(), &compiler_);
    EXPECT_OK(output);
    if (!output.ok()) return {};
    const std::unique_ptr<OutputParser> parser = format_->NewParser(request_, prompt_);
    std::mt19937 random(seed);
    std::string text;
    std::vector<OutputEvent> events;
    for (int step = 0; step < 5000; ++step) {
      const absl::StatusOr<std::vector<uint64_t>> allowed = (*output)->Allowed({}, {});
      EXPECT_OK(allowed);
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < vocabulary_.vocab_size(); ++id) {
        if ((*allowed)[id / 64] >> (id % 64) & 1) ids.push_back(id);
      }
      // Free text is long: tags, which are the last ids or the first, are drawn more often.
      std::vector<int32_t> tags;
      std::copy_if(ids.begin(), ids.end(), std::back_inserter(tags), [](int32_t id) { return id < 1000 || id >= 1256; });
      // An answer may end before its first call, and seldom does.
      const bool called = std::any_of(events.begin(), events.end(),
                                      [](const OutputEvent& event) { return event.kind == OutputEvent::Kind::kToolCallEnd; });
      if ((*output)->CanEnd() && random() % (called ? 4 : 40) == 0) break;
      if (ids.empty()) {
        ADD_FAILURE() << "nothing may follow " << text;
        break;
      }
      const std::vector<int32_t>& from = !tags.empty() && random() % 3 == 0 ? tags : ids;
      const int32_t id = from[random() % from.size()];
      text += vocabulary_.TokenBytes(id);
      const OutputToken token{id, vocabulary_.Shown(id)};
      for (OutputEvent& event : parser->Feed({&token, 1})) events.push_back(std::move(event));
      const absl::StatusOr<bool> complete = (*output)->Accept(id);
      EXPECT_OK(complete);
      if (!complete.ok() || *complete) break;
      EXPECT_LT(step, 4999) << "no end to " << text.substr(0, 500);
    }
    for (OutputEvent& event : parser->Finish()) events.push_back(std::move(event));
    Answer answer = AnswerOf(events);
    answer.text = std::move(text);
    return answer;
  }

  static Answer AnswerOf(const std::vector<OutputEvent>& events) {
    Answer answer;
    for (const OutputEvent& event : events) {
      if (event.kind == OutputEvent::Kind::kReasoning) answer.reasoning += event.text;
      if (event.kind == OutputEvent::Kind::kContent && !event.is_preamble) answer.content += event.text;
      if (event.kind == OutputEvent::Kind::kToolCallStart) answer.calls.emplace_back(event.name, "");
      if (event.kind == OutputEvent::Kind::kToolCallArguments) answer.calls.back().second += event.text;
    }
    return answer;
  }

  static AnswerRule::Tool Add(bool strict) {
    return {.name = "add",
            .parameters = Json::parse(R"({"type": "object", "properties": {"a": {"type": "integer"},
        "s": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "x"}, "e": {"type": "string", "enum": ["on", "off"]},
        "l": {"$ref": "#/$defs/flags"}}, "required": ["a", "s"], "$defs": {"flags": {"type": "array", "items": {"type": "boolean"}}}})"),
            .strict = strict};
  }
  // The arguments match Add's schema.
  static void ExpectMatch(const std::string& text) {
    const Json arguments = Json::parse(text, nullptr, false);
    ASSERT_TRUE(arguments.is_object()) << text;
    EXPECT_TRUE(arguments.contains("a") && arguments["a"].is_number_integer()) << text;
    ASSERT_TRUE(arguments.contains("s") && arguments["s"].is_string()) << text;
    const auto s = arguments["s"].get<std::string>();
    EXPECT_THAT(s, HasSubstr("x")) << text;
    const int64_t length = std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; });
    EXPECT_TRUE(length >= 2 && length <= 5) << text;
    for (const auto& [name, value] : arguments.items()) {
      EXPECT_TRUE(name == "a" || name == "s" || (name == "e" && (value == "on" || value == "off")) ||
                  (name == "l" && value.is_array() &&
                   std::all_of(value.begin(), value.end(), [](const Json& flag) { return flag.is_boolean(); })))
          << text;
    }
  }

  std::map<std::string, int32_t> ids_;
  const FamilyVocabulary vocabulary_;
  constraint::ConstraintCompiler compiler_{&vocabulary_};
  ChatPrompt prompt_;
  v1::Constraint constraint_;
};

TEST_P(ConstrainedTest, ARequiredCallIsACallWithMatchingArguments) {
  Begin({.tools = {Add(false), {.name = "now", .parameters = nullptr}}, .requires_call = true});
  size_t most = 0;
  for (int seed = 0; seed < 12; ++seed) {
    const Answer answer = Draw(seed);
    EXPECT_EQ(answer.content, "") << answer.text;
    ASSERT_FALSE(answer.calls.empty()) << answer.text;
    most = std::max(most, answer.calls.size());
    for (const auto& [name, arguments] : answer.calls) {
      if (name == "now") {
        EXPECT_EQ(Json::parse(arguments), Json::object());
      } else {
        EXPECT_EQ(name, "add");
        ExpectMatch(arguments);
      }
    }
  }
  if (format_->name() != "harmony") {
    EXPECT_GT(most, 1u) << "calls are parallel";
  }
}

TEST_P(ConstrainedTest, ARequiredCallLeavesNoPlaceForContentOfAForm) {
  Begin({.tools = {Add(false)}, .requires_call = true, .content = parts::Schema(Json::parse(R"({"type": "object"})"))});
  for (int seed = 0; seed < 12; ++seed) {
    const Answer answer = Draw(seed);
    EXPECT_EQ(answer.content, "") << answer.text;
    EXPECT_FALSE(answer.calls.empty()) << answer.text;
  }
}

TEST_P(ConstrainedTest, ARequiredNameThatIsNoPropertyIsRefusedOrWritten) {
  prompt_ = Render(R"([{"role": "user", "content": "1 + 2?"}])");
  const Json parameters = Json::parse(R"({"type": "object", "properties": {}, "required": ["a"]})");
  const absl::StatusOr<v1::Constraint> constraint =
      format_->Constrain(request_, prompt_, {.tools = {{.name = "f", .parameters = parameters}}, .requires_call = true});
  if (!constraint.ok()) {
    EXPECT_THAT(constraint, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a is not among the properties")));
    return;
  }
  constraint_ = *constraint;
  for (const auto& [name, arguments] : Draw(0).calls) EXPECT_THAT(arguments, HasSubstr("\"a\""));
}

TEST_P(ConstrainedTest, OneCallIsOneWhereCallsAreNotParallel) {
  Begin({.tools = {Add(false)}, .requires_call = true, .parallel = false});
  for (int seed = 0; seed < 6; ++seed) EXPECT_EQ(Draw(seed).calls.size(), 1u);
}

TEST_P(ConstrainedTest, AStrictToolIsHeldToItsSchemaWhereItIsCalled) {
  Begin({.tools = {Add(true)}});
  size_t calls = 0;
  for (int seed = 0; seed < 25; ++seed) {
    for (const auto& [name, arguments] : Draw(seed).calls) {
      ++calls;
      EXPECT_EQ(name, "add");
      ExpectMatch(arguments);
    }
  }
  EXPECT_GT(calls, 0u);
}

// Its arguments may hold the format's own tags, and then are what the parser makes of them.
TEST_P(ConstrainedTest, AToolThatIsNotStrictIsCalledAsTheModelLikes) {
  Begin({.tools = {Add(true), {.name = "free", .parameters = Json::parse(R"({"type": "object"})")}}});
  bool called = false;
  for (int seed = 0; seed < 40; ++seed) {
    const Answer answer = Draw(seed);
    called = called || (!answer.calls.empty() && answer.calls[0].first == "free");
  }
  EXPECT_TRUE(called);
}

TEST_P(ConstrainedTest, ContentKeepsItsFormAndReasoningIsFree) {
  Begin({.content =
             parts::Schema(Json::parse(R"({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})"))});
  for (int seed = 0; seed < 12; ++seed) {
    const Answer answer = Draw(seed);
    const Json content = Json::parse(answer.content, nullptr, false);
    ASSERT_TRUE(content.is_object()) << answer.content;
    EXPECT_EQ(answer.content.front(), '{') << "no white space of the format's";
    EXPECT_TRUE(content["ok"].is_boolean()) << answer.content;
    EXPECT_TRUE(answer.calls.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(All, ConstrainedTest, testing::ValuesIn(Families()),
                         [](const auto& info) { return std::string(info.param.name); });

std::string Rendered(const char* architecture, std::vector<std::string> tokens, ChatRequest request) {
  const FakeSpecialTokens names(std::move(tokens));
  const auto format =
      MakeChatFormat({.architecture = architecture, .bos_token = "<s>", .eos_token = "</s>", .special_tokens = &names});
  EXPECT_OK(format);
  const auto prompt = (*format)->Render(request);
  EXPECT_OK(prompt);
  return prompt.ok() ? prompt->Text() : "";
}

TEST(FamilyTemplates, WritePlainConversations) {
  ChatRequest request;
  request.messages = Json::parse(
      R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}])");
  EXPECT_EQ(Rendered("qwen3moe", {"<|im_start|>", "<tool_call>"}, request),
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>"
            "assistant\n");
  EXPECT_EQ(Rendered("glm4moe", {"[gMASK]"}, request),
            "[gMASK]<sop><|user|>\nQ<|assistant|>\n<think></think>\nA<|user|>\nR<|assistant|>");
  EXPECT_EQ(Rendered("deepseek2", {"<｜tool▁calls▁begin｜>"}, request),
            "<s><｜User｜>Q<｜Assistant｜>A</s><｜User｜>R<｜Assistant｜>");
  EXPECT_EQ(Rendered("deepseek2", {"<｜tool▁calls▁begin｜>", "<｜search▁begin｜>"}, request),
            "<s><｜User｜>Q<｜Assistant｜></think>A</s><｜User｜>R<｜Assistant｜></think>");
  EXPECT_EQ(Rendered("deepseek2", {"<|im_middle|>"}, request),
            "<|im_user|>user<|im_middle|>Q<|im_end|><|im_assistant|>assistant<|im_middle|>A<|im_end|><|im_user|>user<|im_middle|>"
            "R<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>");
}

TEST(FamilyTemplates, TurnReasoningOnAndOff) {
  ChatRequest off, on;
  on.messages = off.messages = Json::parse(R"([{"role": "user", "content": "Q"}])");
  off.reasoning_effort = "none";
  on.template_kwargs = {{"enable_thinking", true}, {"thinking", true}};
  const std::vector<std::string> qwen = {"<|im_start|>", "<tool_call>"},
                                 deepseek = {"<｜tool▁calls▁begin｜>", "<｜search▁begin｜>"};
  EXPECT_TRUE(Rendered("qwen3moe", qwen, off).ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_TRUE(Rendered("qwen3moe", qwen, on).ends_with("<|im_start|>assistant\n"));
  EXPECT_TRUE(Rendered("qwen35moe", qwen, off).ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_TRUE(Rendered("qwen35moe", qwen, on).ends_with("<|im_start|>assistant\n<think>\n"));
  EXPECT_TRUE(Rendered("glm4moe", {"[gMASK]"}, off).ends_with("Q/nothink<|assistant|>\n<think></think>"));
  EXPECT_TRUE(Rendered("glm4moe", {"[gMASK]"}, on).ends_with("Q<|assistant|>"));
  EXPECT_TRUE(Rendered("deepseek2", deepseek, off).ends_with("<｜Assistant｜></think>"));
  EXPECT_TRUE(Rendered("deepseek2", deepseek, on).ends_with("<｜Assistant｜><think>"));
}

TEST(ChatFormat, BeginsInTheReasoningThatThePromptOpens) {
  const FakeSpecialTokens names;
  const auto format =
      MakeChatFormat({.chat_template = "{{ messages[0].content }}<a><think>\n{# </think> #}", .special_tokens = &names});
  ASSERT_OK(format);
  ChatRequest request;
  request.messages = Json::parse(R"([{"role": "user", "content": "Q"}])");
  const ChatPrompt prompt = *(*format)->Render(request);
  EXPECT_EQ(ParseText(*(*format)->NewParser(request, prompt), "why\n</think>\n\nyes"), "R(why) C(yes)");
}

TEST(ChatFormat, GivesTemplatesTheFormOfArgumentsThatTheyTake) {
  const FakeSpecialTokens names;
  ChatRequest request;
  request.messages = Json::parse(
      R"([{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}])");
  const auto render = [&](const char* source) {
    const auto format = MakeChatFormat({.chat_template = source, .special_tokens = &names});
    EXPECT_OK(format);
    return (*format)->Render(request)->Text();
  };
  EXPECT_EQ(render("{{ messages[0].tool_calls[0].function.arguments | tojson }}"), "{\"a\": 1}");
  EXPECT_EQ(render("{{ 'x' + messages[0].tool_calls[0].function.arguments }}"), "x{\"a\": 1}");
  EXPECT_EQ(render("{{ 'x' + messages[0].content }}"), "x");
}

TEST(ChatFormat, SaysWhatIsMissing) {
  const FakeSpecialTokens names;
  EXPECT_THAT(MakeChatFormat({.architecture = "llama", .special_tokens = &names}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("llama")));
  EXPECT_THAT(MakeChatFormat({.chat_template = "\n{% nonsense %}", .special_tokens = &names}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("chat template: line 2")));
}

}  // namespace
}  // namespace ferry
