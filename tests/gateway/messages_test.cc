#include "gateway/routes/messages.h"

#include "tests/gateway/chat_testing.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

Json MessagesBody(const char* more) {
  Json body = Json::parse(R"({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})");
  body.update(Json::parse(more));
  return body;
}
std::string MessagesAnswer(const Script& script, const ChatAnswerOptions& options, v1::Finish::Reason reason = v1::Finish::STOP) {
  return AnswerTo(script, NewMessagesWriter(options.stream, "msg_1", "demo", 10), options, reason);
}

TEST(Messages, BecomeAConversationOfOpenAis) {
  const ChatPlan plan =
      *MessagesPlanOf(MessagesBody(R"({"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
      "messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
          {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
          {"type": "text", "text": "and?"}]}],
      "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}, {"type": "web_search_20250305", "name": "web_search"}],
      "stop_sequences": ["X"], "stream": true, "temperature": 0.5, "top_k": 3})"),
                      false);
  const Json& messages = plan.chat.messages;
  ASSERT_THAT(messages, SizeIs(5));
  EXPECT_EQ(messages[0], Json::parse(R"({"role": "system", "content": "Be brief."})"));
  EXPECT_EQ(messages[2]["reasoning_content"], "hm");
  EXPECT_EQ(messages[2]["content"], "I look.");
  EXPECT_EQ(messages[2]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
  EXPECT_EQ(messages[3], Json::parse(R"({"role": "tool", "tool_call_id": "t1", "content": "42"})"));
  EXPECT_EQ(messages[4]["content"], "and?");
  ASSERT_THAT(plan.chat.tools, SizeIs(1));
  EXPECT_EQ(plan.chat.tools[0]["function"]["parameters"]["type"], "object");
  EXPECT_THAT(plan.answer.stops, ElementsAre("X"));
  EXPECT_EQ(plan.generation.max_tokens(), 9u);
  EXPECT_EQ(plan.generation.sampling().top_k(), 3u);
}

TEST(Messages, DropTheLineThatChangesWithEveryRequest) {
  const auto system = [](const char* value) { return MessagesPlanOf(MessagesBody(value), false)->chat.messages[0]["content"]; };
  EXPECT_EQ(system(R"({"system": "x-anthropic-billing-header: cc_version=1; cch=5f3;\nYou are"})"), "You are");
  EXPECT_EQ(
      system(R"({"system": [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "You are"}]})"),
      "You are");
}

TEST(Messages, SayHowMuchTheModelReasons) {
  const auto effort = [](const char* more) { return MessagesPlanOf(MessagesBody(more), false)->chat.reasoning_effort; };
  EXPECT_EQ(effort("{}"), std::nullopt);
  EXPECT_EQ(effort(R"({"output_config": {"effort": "low"}})"), "low");
  EXPECT_EQ(effort(R"({"output_config": {"effort": "max"}})"), "high");
  EXPECT_EQ(effort(R"({"output_config": {"effort": "high"}, "thinking": {"type": "disabled"}})"), "none");
}

TEST(Messages, RefuseByName) {
  const auto refused = [](const char* more, const char* field) {
    const absl::StatusOr<ChatPlan> plan = MessagesPlanOf(MessagesBody(more), false);
    EXPECT_THAT(plan, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field))) << more;
    EXPECT_EQ(FieldOf(plan.status()), field) << more;
  };
  refused(R"({"max_tokens": null})", "max_tokens");
  refused(R"({"max_tokens": 0})", "max_tokens");
  refused(R"({"messages": []})", "messages");
  refused(R"({"messages": [{"role": "bot", "content": "x"}]})", "messages[0].role");
  refused(R"({"messages": [{"role": "user"}]})", "messages[0].content");
  refused(R"({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]})", "messages[0].content[0]");
  refused(R"({"messages": [{"role": "user", "content": [{"text": "x"}]}]})", "messages[0].content[0].type");
  refused(R"({"tool_choice": {"type": "any"}})", "tool_choice");
  refused(R"({"tool_choice": {"type": "tool", "name": "f"}})", "tool_choice");
  refused(R"({"tool_choice": {"type": "all"}})", "tool_choice");
  refused(R"({"output_format": {"type": "json_schema", "schema": {"not": {}}}})", "output_format.schema");
  refused(R"({"output_format": {"type": "json_schema", "schema": {}}, "grammar": "root ::= \"a\""})", "grammar");
  refused(R"({"guided_regex": "(?=a)b"})", "guided_regex");
  refused(R"({"tools": [{"description": "nameless"}]})", "tools[0].name");
  EXPECT_OK(MessagesPlanOf(Json::parse(R"({"messages": [{"role": "user", "content": "x"}]})"), /*count_only=*/true));
}

TEST(Messages, TakeCallsThatMustBeMadeAndFormats) {
  const char* const tools = R"("tools": [{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "strict": true,
      "input_schema": {"type": "object"}}])";
  const auto rule = [&](const std::string& more) {
    return MessagesPlanOf(MessagesBody(("{" + more + ", " + tools + "}").c_str()), false)->rule;
  };
  EXPECT_TRUE(rule(R"("tool_choice": {"type": "any"})").requires_call);
  EXPECT_TRUE(rule(R"("tool_choice": {"type": "any"})").parallel);
  EXPECT_FALSE(rule(R"("tool_choice": {"type": "any", "disable_parallel_tool_use": true})").parallel);
  EXPECT_EQ(rule(R"("tool_choice": {"type": "tool", "name": "f"})").tools.size(), 1u);
  EXPECT_FALSE(rule(R"("tool_choice": {"type": "auto"})").IsFree()) << "g is strict";
  EXPECT_TRUE(rule(R"("tool_choice": {"type": "none"})").IsFree());
  EXPECT_EQ(rule(R"("output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}})").content->json_schema(),
            R"({"type":"array"})");
}

TEST(Messages, AnswerWhole) {
  const Json answer = Json::parse(
      MessagesAnswer({{kThink, "hm"}, {kSay, "a"}, {kSay, "b"}, {kCall, "f"}, {kArguments, "{\"a\": 1}"}, {kCallEnd, ""}}, {}));
  ASSERT_THAT(answer["content"], SizeIs(3));
  EXPECT_EQ(answer["content"][0]["thinking"], "hm");
  EXPECT_EQ(answer["content"][1]["text"], "ab");
  EXPECT_EQ(answer["content"][2]["name"], "f");
  EXPECT_EQ(answer["content"][2]["input"]["a"], 1);
  EXPECT_EQ(answer["stop_reason"], "tool_use");
  EXPECT_EQ(answer["usage"]["input_tokens"], 6);
  EXPECT_EQ(answer["usage"]["cache_read_input_tokens"], 4);
  EXPECT_EQ(answer["usage"]["output_tokens"], 6);
}

TEST(Messages, StreamBlocksWithStartsAndStops) {
  const std::vector<Json> events =
      EventsOf(MessagesAnswer({{kThink, "hm"}, {kSay, "a"}, {kCall, "f"}, {kArguments, "{}"}, {kCallEnd, ""}}, {.stream = true}));
  EXPECT_THAT(TypesOf(events),
              ElementsAre("message_start", "content_block_start", "content_block_delta", "content_block_delta",
                          "content_block_stop", "content_block_start", "content_block_delta", "content_block_stop",
                          "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"));
  EXPECT_EQ(events[0]["message"]["usage"]["input_tokens"], 10);
  EXPECT_EQ(events[2]["delta"]["thinking"], "hm");
  EXPECT_EQ(events[3]["delta"]["type"], "signature_delta");
  EXPECT_EQ(events[8]["index"], 2);
  EXPECT_EQ(events[8]["content_block"]["name"], "f");
  EXPECT_EQ(events[9]["delta"]["partial_json"], "{}");
  EXPECT_EQ(events[11]["delta"]["stop_reason"], "tool_use");
}

TEST(Messages, SayWhatEndedThem) {
  EXPECT_EQ(Json::parse(MessagesAnswer({{kSay, "a"}}, {}))["stop_reason"], "end_turn");
  EXPECT_EQ(Json::parse(MessagesAnswer({{kSay, "a"}}, {}, v1::Finish::LENGTH))["stop_reason"], "max_tokens");
  const Json stopped = Json::parse(MessagesAnswer({{kSay, "aX"}}, {.stops = {"X"}}));
  EXPECT_EQ(stopped["stop_reason"], "stop_sequence");
  EXPECT_EQ(stopped["stop_sequence"], "X");
  EXPECT_EQ(stopped["content"][0]["text"], "a");
}

TEST(Messages, DeliverArgumentsThatAreNoJson) {
  const Json answer = Json::parse(MessagesAnswer({{kCall, "f"}, {kArguments, "{oops"}, {kCallEnd, ""}}, {}));
  EXPECT_EQ(answer["content"][0]["input"]["invalid_arguments"], "{oops");
}

}  // namespace
}  // namespace ferry
