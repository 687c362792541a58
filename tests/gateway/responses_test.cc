#include "gateway/routes/responses.h"

#include "tests/gateway/chat_testing.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const AnswerIdentity kResponseIdentity = {.id = "resp_1", .model = "demo", .created = 7};

std::string Answer(const Script& script, bool stream, v1::Finish::Reason reason = v1::Finish::STOP) {
  return AnswerTo(script, NewResponsesWriter({.stream = stream}, kResponseIdentity), {.stream = stream}, reason);
}

TEST(Responses, BecomeAConversation) {
  // What Codex sends: the whole history, with tools of other kinds.
  const ResponsesPlan responses = *ResponsesPlanOf(Json::parse(R"({"model": "m", "instructions": "Be brief.", "store": false,
      "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "reasoning": {"effort": "high", "summary": "auto"},
      "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "done", "annotations": []}]},
        {"role": "user", "content": "more"}],
      "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": false}, {"type": "web_search"},
        {"type": "custom", "name": "apply_patch"}], "tool_choice": "auto", "stream": true})"));
  const Json& messages = responses.plan.chat.messages;
  ASSERT_THAT(messages, SizeIs(7));
  EXPECT_EQ(messages[0]["role"], "developer");
  EXPECT_EQ(messages[1]["content"], "q");
  EXPECT_EQ(messages[2]["reasoning_content"], "hm");
  EXPECT_THAT(messages[2]["tool_calls"], SizeIs(2));
  EXPECT_EQ(messages[4]["tool_call_id"], "c2");
  EXPECT_EQ(messages[4]["content"], "2");
  EXPECT_EQ(messages[5]["content"], "done");
  EXPECT_EQ(responses.plan.chat.reasoning_effort, "high");
  EXPECT_EQ(responses.echo.reasoning["effort"], "high");
  ASSERT_THAT(responses.plan.chat.tools, SizeIs(1));
  EXPECT_EQ(responses.plan.chat.tools[0]["function"]["name"], "f");
  EXPECT_EQ(ResponsesPlanOf({{"input", "hi"}})->plan.chat.messages[0]["content"], "hi");
}

TEST(Responses, RefuseByName) {
  const auto refused = [](const char* body, const char* field) {
    const absl::StatusOr<ResponsesPlan> plan = ResponsesPlanOf(Json::parse(body));
    EXPECT_THAT(plan, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field))) << body;
    EXPECT_EQ(FieldOf(plan.status()), field) << body;
  };
  refused(R"({"input": "x", "previous_response_id": "resp_0"})", "previous_response_id");
  refused(R"({"input": "x", "background": true})", "background");
  refused(R"({"input": "x", "text": {"format": {"type": "json_schema"}}})", "text.format.schema");
  refused(R"({"input": "x", "text": {"format": {"type": "json_schema", "schema": {}}}, "guided_regex": "a"})", "guided_regex");
  refused(R"({"input": "x", "tool_choice": "required"})", "tool_choice");
  refused(R"({"input": "x", "tool_choice": {"type": "web_search"}})", "tool_choice");
  refused(R"({})", "input");
  refused(R"({"input": [{"type": "computer_call"}]})", "input[0]");
  refused(R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})", "input[0].content[0]");
  refused(R"({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]})", "input[0].call_id");
}

TEST(Responses, TakeATextFormatAndAToolThatMustBeCalled) {
  const ResponsesPlan plan = *ResponsesPlanOf(Json::parse(
      R"({"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}}},
      "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}, {"type": "function", "name": "g"}],
      "tool_choice": {"type": "function", "name": "g"}})"));
  EXPECT_EQ(plan.plan.rule.content->json_schema(), R"({"type":"object"})");
  EXPECT_EQ(plan.plan.chat.response_format["json_schema"]["name"], "n") << "harmony writes it into the prompt";
  EXPECT_EQ(plan.echo.text_format["name"], "n");
  EXPECT_EQ(plan.echo.tool_choice["name"], "g");
  EXPECT_TRUE(plan.plan.rule.requires_call);
  ASSERT_EQ(plan.plan.rule.tools.size(), 1u);
  EXPECT_EQ(plan.plan.rule.tools[0].name, "g");
  EXPECT_EQ(plan.plan.chat.tools.size(), 2u) << "the prompt stays what it was";
}

TEST(Responses, AnswerWhole) {
  const Json answer = Json::parse(Answer({{kThink, "hm"}, {kSay, "a"}, {kCall, "f"}, {kArguments, "{}"}, {kCallEnd, ""}}, false));
  EXPECT_EQ(answer["status"], "completed");
  ASSERT_THAT(answer["output"], SizeIs(3));
  EXPECT_EQ(answer["output"][0]["content"][0]["text"], "hm");
  EXPECT_EQ(answer["output"][1]["content"][0]["text"], "a");
  EXPECT_EQ(answer["output"][2]["arguments"], "{}");
  EXPECT_NE(answer["output"][2]["id"], answer["output"][2]["call_id"]);
  EXPECT_EQ(answer["usage"]["output_tokens"], 5);
  EXPECT_EQ(answer["usage"]["input_tokens_details"]["cache_write_tokens"], 0) << "the official client wants it";
}

TEST(Responses, StreamItemsInOrderWithNumbers) {
  const std::vector<Json> events =
      EventsOf(Answer({{kSay, "a"}, {kSay, "b"}, {kCall, "f"}, {kArguments, "{}"}, {kCallEnd, ""}}, true));
  EXPECT_THAT(TypesOf(events),
              ElementsAre("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
                          "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
                          "response.content_part.done", "response.output_item.done", "response.output_item.added",
                          "response.function_call_arguments.delta", "response.function_call_arguments.done",
                          "response.output_item.done", "response.completed"));
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i]["sequence_number"], i);
  EXPECT_EQ(events[4]["output_index"], 0);
  EXPECT_EQ(events[10]["output_index"], 1);
  EXPECT_EQ(events[10]["item_id"], events[9]["item"]["id"]);
  EXPECT_EQ(events[6]["text"], "ab");
  EXPECT_EQ(events[13]["response"]["output"].size(), 2u);
  EXPECT_EQ(events[2]["item"]["status"], "in_progress");
  EXPECT_EQ(events[8]["item"]["status"], "completed");
}

TEST(Responses, SayThatTheyWereCut) {
  const std::vector<Json> events = EventsOf(Answer({{kSay, "a"}}, true, v1::Finish::LENGTH));
  EXPECT_EQ(events.back()["type"], "response.incomplete");
  EXPECT_EQ(events.back()["response"]["incomplete_details"]["reason"], "max_output_tokens");
}

}  // namespace
}  // namespace ferry
