#include "gateway/chat/chat_format.h"

#include <memory>
#include <string>

#include "tests/chat/harmony_output.h"
#include "tests/chat/parsing.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

struct Family {
  const char* name;
  const char* architecture;
  std::vector<std::string> tokens;
};

std::vector<Family> Families() {
  return {{"Kimi", "deepseek2", {"<|im_middle|>", "<|im_end|>"}},
          {"DeepSeekV3", "deepseek2", {"<｜tool▁calls▁begin｜>"}},
          {"DeepSeekV31", "deepseek2", {"<｜tool▁calls▁begin｜>", "<｜search▁begin｜>"}},
          {"Glm", "glm4moe", {"[gMASK]"}},
          {"Qwen3", "qwen3moe", {"<|im_start|>", "<tool_call>"}},
          {"Qwen3Next", "qwen3next", {"<|im_start|>", "<tool_call>"}},
          {"Qwen35", "qwen35moe", {"<|im_start|>", "<tool_call>"}},
          {"GptOss", "gpt-oss", {}}};
}

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
    if (event.kind == OutputEvent::Kind::kToolCallEnd) EXPECT_TRUE(event.arguments_valid) << output;
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
