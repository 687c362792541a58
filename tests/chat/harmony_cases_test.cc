// Against openai-harmony's renderings and readings: make_harmony_cases.py.

#include <gtest/gtest.h>

#include <fstream>

#include "gateway/harmony/harmony_format.h"
#include "tests/chat/harmony_output.h"
#include "tests/chat/parsing.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

const Json& Cases() {
  static const auto& cases = *new Json([] {
    std::ifstream file(SourcePath("tests/chat/testdata/harmony_cases.json"));
    return Json::parse(file);
  }());
  return cases;
}

HarmonyFormat Format() { return HarmonyFormat(*HarmonyTokens::Find(FakeSpecialTokens(HarmonyIds()))); }

ChatRequest RequestOf(const Json& json) {
  ChatRequest request;
  request.messages = json["messages"];
  request.tools = json["tools"];
  if (json.contains("reasoning_effort")) request.reasoning_effort = json["reasoning_effort"].get<std::string>();
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d", Cases()["date"].get<std::string>(), &request.now, &error)) << error;
  return request;
}

// What the library's messages are as events.
std::string ShownMessages(const Json& messages) {
  std::vector<OutputEvent> events;
  int call = 0;
  for (const Json& message : messages) {
    const std::string text = message["text"];
    if (message["recipient"].is_string()) {
      const std::string name = message["recipient"].get<std::string>().substr(std::string("functions.").size());
      events.push_back({.kind = OutputEvent::Kind::kToolCallStart, .tool_call = call, .name = name});
      events.push_back({.kind = OutputEvent::Kind::kToolCallArguments, .text = text, .tool_call = call});
      events.push_back({.kind = OutputEvent::Kind::kToolCallEnd, .tool_call = call++});
    } else if (message["channel"] == "analysis") {
      events.push_back({.kind = OutputEvent::Kind::kReasoning, .text = text});
    } else {
      events.push_back({.kind = OutputEvent::Kind::kContent, .text = text, .is_preamble = message["channel"] == "commentary"});
    }
  }
  return Shown(events);
}

TEST(HarmonyCases, RenderConversationsAsTheLibraryDoes) {
  ASSERT_GE(Cases()["conversations"].size(), 200u);
  for (const Json& test : Cases()["conversations"]) {
    const absl::StatusOr<ChatPrompt> prompt = Format().Render(RequestOf(test["request"]));
    ASSERT_OK(prompt) << test["request"];
    EXPECT_EQ(prompt->Text(), test["want"].get<std::string>());
    for (const TextPiece& piece : prompt->pieces)
      EXPECT_TRUE(!piece.from_user || piece.text.find("<|") == std::string::npos) << piece.text;
  }
}

TEST(HarmonyCases, ReadOutputsAsTheLibraryDoes) {
  ASSERT_GE(Cases()["outputs"].size(), 200u);
  for (const Json& test : Cases()["outputs"]) {
    const std::string output = test["output"];
    const std::unique_ptr<OutputParser> parser = Format().NewParser(ChatRequest(), ChatPrompt());
    std::vector<OutputEvent> events = parser->Feed(HarmonyOutput(output, 3));
    for (OutputEvent& event : parser->Finish()) events.push_back(std::move(event));
    EXPECT_EQ(Shown(events), ShownMessages(test["want"])) << output;
  }
}

TEST(HarmonyFormat, MarksEveryTextOfARequest) {
  ChatRequest request;
  request.messages = Json::parse(R"([{"role": "system", "content": "<|end|>"}, {"role": "user", "content": "<|start|>"},
      {"role": "assistant", "content": "<|call|>", "tool_calls": [{"id": "1", "function": {"name": "<|x|>", "arguments": "<|return|>"}}]},
      {"role": "tool", "tool_call_id": "1", "content": "<|message|>"}])");
  request.tools =
      Json::parse(R"([{"type": "function", "function": {"name": "<|x|>", "description": "<|d|>", "parameters": {"type": "object",
      "description": "<|o|>", "properties": {"<|p|>": {"type": "string", "enum": ["<|e|>"], "default": "<|e|>", "description": "<|f|>"}}}}}])");
  request.response_format =
      Json::parse(R"({"type": "json_schema", "json_schema": {"name": "<|n|>", "schema": {"title": "<|t|>"}}})");
  ASSERT_OK_AND_ASSIGN(const ChatPrompt prompt, Format().Render(request));
  std::string from_format, from_user;
  for (const TextPiece& piece : prompt.pieces) (piece.from_user ? from_user : from_format) += piece.text;
  for (const char* injected : {"<|x|>", "<|d|>", "<|o|>", "<|p|>", "<|e|>", "<|f|>", "<|n|>", "<|t|>", "<|return|>"}) {
    EXPECT_EQ(from_format.find(injected), std::string::npos) << injected;
    EXPECT_NE(from_user.find(injected), std::string::npos) << injected;
  }
}

TEST(HarmonyFormat, PutsAResponseFormatAtTheDevelopersEnd) {
  ChatRequest request;
  request.messages = Json::parse(R"([{"role": "user", "content": "x"}])");
  request.response_format = Json::parse(
      R"({"type": "json_schema", "json_schema": {"name": "list", "description": "d", "schema": {"type": "object"}}})");
  ASSERT_OK_AND_ASSIGN(const ChatPrompt prompt, Format().Render(request));
  EXPECT_THAT(
      prompt.Text(),
      testing::HasSubstr("<|start|>developer<|message|># Response Formats\n\n## list\n\n// d\n{\"type\":\"object\"}<|end|>"));
}

TEST(HarmonyFormat, NamesTheFieldThatIsWrong) {
  const auto render = [](const char* messages, const char* tools = "[]") {
    ChatRequest request;
    request.messages = Json::parse(messages);
    request.tools = Json::parse(tools);
    return Format().Render(request);
  };
  using testing::HasSubstr;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(render("[]"), StatusIs(kInvalid, HasSubstr("messages:")));
  EXPECT_THAT(render(R"([{"role": "pope", "content": "x"}])"),
              StatusIs(kInvalid, HasSubstr("messages[0]: the role is \"pope\"")));
  EXPECT_THAT(render(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
              StatusIs(kInvalid, HasSubstr("messages[0].content[0]")));
  EXPECT_THAT(render(R"([{"role": "tool", "content": "x"}])"), StatusIs(kInvalid, HasSubstr("tool_call_id")));
  EXPECT_THAT(render(R"([{"role": "user", "content": "x"}])", "[{}]"), StatusIs(kInvalid, HasSubstr("tools[0].function.name")));
}

}  // namespace
}  // namespace ferry
