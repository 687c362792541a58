#include "gateway/routes/chat_completions.h"

#include "tests/gateway/chat_testing.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const AnswerIdentity kIdentity = {.id = "chatcmpl-1", .model = "demo", .created = 7};

Json Body(const char* more) {
  Json body = Json::parse(R"({"messages": [{"role": "user", "content": "hi"}]})");
  body.update(Json::parse(more));
  return body;
}
std::string Answer(const Script& script, const ChatAnswerOptions& options, bool include_usage = false,
                   v1::Finish::Reason reason = v1::Finish::STOP) {
  return AnswerTo(script,
                  NewChatCompletionWriter({.stream = options.stream, .include_usage = include_usage}, kIdentity,
                                          std::make_shared<ServedModel>()),
                  options, reason);
}

TEST(ChatCompletions, TakesAConversationAndWhatTemplatesRead) {
  const ChatCompletion completion =
      *ChatCompletionOf(Body(R"({"tools": [{"type": "function", "function": {"name": "f", "parameters":
      {"type": "object", "properties": {"z": {}, "a": {}}}}}], "chat_template_kwargs": {"enable_thinking": false},
      "reasoning_effort": "low", "max_completion_tokens": 9, "stop": "END", "n": 2, "stream": true, "parallel_tool_calls": false,
      "tool_choice": "auto", "response_format": {"type": "text"}, "store": true, "made_up": 1})"));
  EXPECT_EQ(completion.plan.chat.messages.size(), 1u);
  EXPECT_THAT(Dump(completion.plan.chat.tools), HasSubstr(R"("z":{},"a":{})")) << "keys keep their order";
  EXPECT_EQ(completion.plan.chat.template_kwargs["enable_thinking"], false);
  EXPECT_EQ(completion.plan.chat.reasoning_effort, "low");
  EXPECT_EQ(completion.plan.generation.max_tokens(), 9u);
  EXPECT_EQ(completion.plan.generation.stop_size(), 0) << "the engine would look for it in the reasoning, too";
  EXPECT_THAT(completion.plan.answer.stops, ElementsAre("END"));
  EXPECT_FALSE(completion.plan.answer.parallel_tool_calls);
  EXPECT_EQ(completion.plan.n, 2);
}

TEST(ChatCompletions, LeavesToolsOutWhereNoneMayBeCalled) {
  EXPECT_TRUE(ChatCompletionOf(Body(R"({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"})"))
                  ->plan.chat.tools.empty());
}

TEST(ChatCompletions, RefusesByName) {
  const auto refused = [](const char* more, const char* field) {
    const absl::StatusOr<ChatCompletion> completion = ChatCompletionOf(Body(more));
    EXPECT_THAT(completion, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field))) << more;
    EXPECT_EQ(FieldOf(completion.status()), field) << more;
  };
  refused(R"({"messages": null})", "messages");
  refused(R"({"messages": []})", "messages");
  refused(R"({"messages": "hi"})", "messages");
  refused(R"({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}})",
          "response_format.json_schema.schema");
  refused(R"({"tool_choice": "required"})", "tool_choice");
  refused(R"({"tool_choice": "maybe"})", "tool_choice");
  refused(R"({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "if": {}}}}],
      "tool_choice": "required"})",
          "tools");
  refused(
      R"({"tools": [{"type": "function", "function": {"name": "f", "strict": true, "parameters": {"patternProperties": {}}}}]})",
      "tools");
  refused(R"({"tool_choice": {"type": "function", "function": {"name": "f"}}})", "tool_choice");
  refused(R"({"tools": [{"type": "web_search"}]})", "tools[0].type");
  refused(R"({"tools": [{"type": "function"}]})", "tools[0].function");
  refused(R"({"tools": [{"type": "function", "function": {}}]})", "tools[0].function.name");
  refused(R"({"functions": [{"name": "f"}]})", "functions");
  refused(R"({"chat_template": "{{ x }}"})", "chat_template");
  refused(R"({"modalities": ["text", "audio"]})", "modalities");
  refused(R"({"top_logprobs": 3})", "top_logprobs");
  refused(R"({"temperature": []})", "temperature");
  refused(R"({"chat_template_kwargs": 5})", "chat_template_kwargs");
}

TEST(ChatCompletions, SaysWhatAnAnswerMustBe) {
  const char* const tools = R"("tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
      {"type": "function", "function": {"name": "g", "strict": true, "parameters": {"type": "object"}}}])";
  const auto plan = [&](const std::string& more) {
    const absl::StatusOr<ChatCompletion> completion = ChatCompletionOf(Body(("{" + more + tools + "}").c_str()));
    EXPECT_OK(completion);
    return completion.ok() ? completion->plan : ChatPlan();
  };
  EXPECT_FALSE(plan("").rule.requires_call);
  EXPECT_FALSE(plan("").rule.IsFree()) << "g is strict";
  EXPECT_EQ(plan(R"("tool_choice": "required", )").rule.tools.size(), 2u);
  const AnswerRule named = plan(R"("tool_choice": {"type": "function", "function": {"name": "f"}}, )").rule;
  EXPECT_TRUE(named.requires_call && !named.parallel);
  ASSERT_EQ(named.tools.size(), 1u);
  EXPECT_TRUE(named.Holds(named.tools[0])) << "strict or not";
  const ChatPlan allowed = plan(R"("tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required",
      "tools": [{"type": "function", "function": {"name": "f"}}]}}, )");
  EXPECT_TRUE(allowed.rule.requires_call);
  EXPECT_EQ(allowed.chat.tools.size(), 1u);
  EXPECT_TRUE(plan(R"("tool_choice": "none", )").rule.IsFree());
  EXPECT_TRUE(plan(R"("response_format": {"type": "json_object"}, )").rule.content->json_object());
}

TEST(ChatCompletions, AnswersWhole) {
  const Json answer = Json::parse(Answer({{kThink, "hm"}, {kThink, "m"}, {kSay, "a"}, {kSay, "b"}}, {}));
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "ab");
  EXPECT_EQ(answer["choices"][0]["message"]["reasoning_content"], "hmm");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 10);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 4);
  EXPECT_EQ(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 2);
  EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
}

TEST(ChatCompletions, AnswersWithCalls) {
  const Json answer = Json::parse(
      Answer({{kCall, "f"}, {kArguments, "{\"a\""}, {kArguments, ": 1}"}, {kCallEnd, ""}, {kCall, "g"}, {kCallEnd, ""}}, {}));
  const Json& message = answer["choices"][0]["message"];
  EXPECT_EQ(message["content"], nullptr);
  ASSERT_THAT(message["tool_calls"], SizeIs(2));
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "f");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], "{\"a\": 1}");
  EXPECT_EQ(message["tool_calls"][1]["function"]["arguments"], "");
  EXPECT_NE(message["tool_calls"][0]["id"], message["tool_calls"][1]["id"]);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "tool_calls");
}

TEST(ChatCompletions, StreamsTheRoleFirstAndCallsInPieces) {
  const std::vector<Json> events = EventsOf(Answer({{kThink, "h"}, {kSay, "a"}, {kCall, "f"}, {kArguments, "{}"}, {kCallEnd, ""}},
                                                   {.stream = true}, /*include_usage=*/true));
  ASSERT_THAT(events, SizeIs(8));
  const auto delta = [&](size_t i) { return events[i]["choices"][0]["delta"]; };
  EXPECT_EQ(delta(0)["role"], "assistant");
  EXPECT_EQ(delta(1)["reasoning_content"], "h");
  EXPECT_EQ(delta(2)["content"], "a");
  EXPECT_EQ(delta(3)["tool_calls"][0]["index"], 0);
  EXPECT_EQ(delta(3)["tool_calls"][0]["function"]["name"], "f");
  EXPECT_EQ(delta(4)["tool_calls"][0]["index"], 0);
  EXPECT_EQ(delta(4)["tool_calls"][0]["function"]["arguments"], "{}");
  EXPECT_FALSE(delta(4)["tool_calls"][0].contains("id"));
  EXPECT_EQ(events[5]["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_EQ(events[6]["usage"]["completion_tokens"], 5);
  EXPECT_EQ(events[7], "[DONE]");
}

TEST(ChatCompletions, StopsInTheContentAloneAndHoldsNothingBackAtTheEnd) {
  const ChatAnswerOptions options = {.stops = {"END"}};
  const Json stopped = Json::parse(Answer({{kThink, "END"}, {kSay, "aE"}, {kSay, "ND"}, {kSay, "never"}}, options));
  EXPECT_EQ(stopped["choices"][0]["message"]["content"], "a");
  EXPECT_EQ(stopped["choices"][0]["message"]["reasoning_content"], "END");
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  const Json cut = Json::parse(Answer({{kSay, "aEN"}}, options, false, v1::Finish::LENGTH));
  EXPECT_EQ(cut["choices"][0]["message"]["content"], "aEN");
  EXPECT_EQ(cut["choices"][0]["finish_reason"], "length");
  const Json before_call = Json::parse(Answer({{kSay, "aE"}, {kCall, "f"}, {kCallEnd, ""}}, options));
  EXPECT_EQ(before_call["choices"][0]["message"]["content"], "aE");
}

TEST(ChatCompletions, EndsBehindTheFirstCallWhereCallsAreNotParallel) {
  const Json answer =
      Json::parse(Answer({{kCall, "f"}, {kCallEnd, ""}, {kCall, "g"}, {kCallEnd, ""}}, {.parallel_tool_calls = false}));
  EXPECT_THAT(answer["choices"][0]["message"]["tool_calls"], SizeIs(1));
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "tool_calls");
}

}  // namespace
}  // namespace ferry
