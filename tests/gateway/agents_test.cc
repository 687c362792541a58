// Exchanges as the agents Codex and Claude Code have them, and as OpenAI's chat has them: ten calls of a tool, each told with the
// whole history, in front of an engine that says gpt-oss's format, some of it malformed.

#include "gateway/gateway.h"
#include "gateway/json/json.h"
#include "tests/gateway/chat_testing.h"
#include "tests/gateway/fake_coordinator.h"
#include "tests/gateway/http_client.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kTurns = 10;
const std::vector<std::string> kControls = {"<|start|>",     "<|end|>",  "<|message|>", "<|channel|>",
                                            "<|constrain|>", "<|call|>", "<|return|>"};

// Control tokens as their ids, other text a token a byte.
std::vector<uint32_t> TokensOf(std::string_view text) {
  std::vector<uint32_t> tokens;
  while (!text.empty()) {
    size_t taken = 0;
    for (size_t i = 0; i < kControls.size(); ++i) {
      if (!text.starts_with(kControls[i])) continue;
      tokens.push_back(static_cast<uint32_t>(256 + i));
      taken = kControls[i].size();
    }
    if (taken == 0) tokens.push_back(static_cast<unsigned char>(text[0])), taken = 1;
    text.remove_prefix(taken);
  }
  return tokens;
}

std::string ArgumentsOf(int turn) { return R"({"command":["step",")" + std::to_string(turn) + R"("]})"; }
std::string ResultOf(int turn) { return "result " + std::to_string(turn); }
std::string ThoughtOf(int turn) { return "I need step " + std::to_string(turn) + "."; }

// What the model says in a turn: every form of a call's header that models write, right or wrong.
std::string SaidIn(int turn) {
  if (turn == kTurns)
    return "<|channel|>analysis<|message|>Enough.<|end|><|start|>assistant<|channel|>final<|message|>All done.<|return|>";
  const std::string headers[] = {"<|start|>assistant<|channel|>commentary to=functions.shell <|constrain|>json<|message|>",
                                 "<|start|>assistant to=functions.shell<|channel|>commentary json<|message|>",
                                 "<|start|>assistant<|channel|>analysis to=functions.shell <|constrain|>json<|message|>",
                                 "<|channel|>commentary to=functions.shell<|constrain|>json<|message|>",
                                 "<|start|>assistant<|channel|>commentary to=functions.shelljson<|message|>"};
  return "<|channel|>analysis<|message|>" + ThoughtOf(turn) + "<|end|>" + headers[turn % std::size(headers)] + ArgumentsOf(turn) +
         "<|call|>";
}

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

class AgentsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    coordinator_.AddSpecialTokens(kControls);
    coordinator_.SetScript([this](const v1::GenerateRequest& request, const auto& write) { return Speak(request, write); });
    absl::StatusOr<std::unique_ptr<Gateway>> started =
        Gateway::Start({.listen = "127.0.0.1:0", .coordinator = coordinator_.address()});
    ASSERT_OK(started);
    gateway_ = *std::move(started);
  }

  // The turn follows from the results that the prompt has, and every earlier one must be there in full.
  grpc::Status Speak(const v1::GenerateRequest& request, const std::function<bool(const v1::GenerateResponse&)>& write) {
    std::string prompt;
    for (const uint32_t id : request.tokens().ids()) prompt.push_back(static_cast<char>(id));
    const int turn = CountOf(prompt, "functions.shell to=assistant");
    prompts_.push_back(prompt);
    for (int earlier = 0; earlier < turn; ++earlier) {
      EXPECT_EQ(CountOf(prompt, ArgumentsOf(earlier)), 1) << turn << " " << earlier;
      EXPECT_EQ(CountOf(prompt, ResultOf(earlier) + "<"), 1) << turn << " " << earlier;
      EXPECT_EQ(CountOf(prompt, ThoughtOf(earlier)), 1) << "reasoning stays while the turn is open: " << turn << " " << earlier;
    }
    for (const uint32_t token : TokensOf(SaidIn(turn))) {
      v1::GenerateResponse message;
      message.add_token_ids(token);
      if (!write(message)) return grpc::Status::CANCELLED;
    }
    v1::GenerateResponse last;
    last.mutable_finish()->set_reason(v1::Finish::STOP);
    last.mutable_finish()->set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
    write(last);
    return grpc::Status::OK;
  }

  std::vector<Json> Stream(const std::string& path, const Json& body, const std::string& headers) {
    HttpClient client(gateway_->port());
    std::string request = Post(path, body.dump(), headers);
    request.replace(request.find("HTTP/1.1"), 8, "HTTP/1.0");  // no chunks
    client.Send(request);
    const std::string answer = client.ReadAll();
    EXPECT_EQ(StatusOfAnswer(answer), 200) << answer;
    return EventsOf(BodyOf(answer));
  }

  FakeCoordinator coordinator_;
  std::unique_ptr<Gateway> gateway_;
  std::vector<std::string> prompts_;  // by the coordinator's thread, one call at a time
};

TEST_F(AgentsTest, CodexGetsEveryCallOfTenTurns) {
  const Json shell = Json::parse(R"({"type": "function", "name": "shell", "description": "Runs a command.", "strict": false,
      "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}},
      "workdir": {"type": "string"}, "timeout_ms": {"type": "number"}}, "required": ["command"], "additionalProperties": false}})");
  Json body = Json::parse(R"({"model": "gpt-oss-120b", "instructions": "You are a coding agent.", "tool_choice": "auto",
      "parallel_tool_calls": false, "reasoning": {"effort": "medium", "summary": "auto"}, "store": false, "stream": true,
      "include": ["reasoning.encrypted_content"], "prompt_cache_key": "0199", "text": {"verbosity": "low"},
      "client_metadata": {"x-codex-installation-id": "1"},
      "input": [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Do ten steps."}]}]})");
  body["tools"] = {
      shell, {{"type", "web_search"}, {"external_web_access", false}}, {{"type", "custom"}, {"name", "apply_patch"}}};
  const std::string headers = "originator: codex_cli_rs\r\nsession_id: 0199\r\nAccept: text/event-stream\r\n";
  for (int turn = 0; turn < kTurns; ++turn) {
    int calls = 0;
    for (const Json& event : Stream("/v1/responses", body, headers)) {
      if (event["type"] != "response.output_item.done") continue;
      const Json& item = event["item"];
      body["input"].push_back(item);  // as it came
      if (item["type"] != "function_call") continue;
      ++calls;
      EXPECT_EQ(item["name"], "shell");
      EXPECT_EQ(item["arguments"], ArgumentsOf(turn)) << turn;
      body["input"].push_back({{"type", "function_call_output"}, {"call_id", item["call_id"]}, {"output", ResultOf(turn)}});
    }
    ASSERT_EQ(calls, 1) << turn;
  }
  const std::vector<Json> last = Stream("/v1/responses", body, headers);
  EXPECT_EQ(last.back()["type"], "response.completed");
  EXPECT_EQ(last.back()["response"]["output"].back()["content"][0]["text"], "All done.");
  EXPECT_THAT(prompts_.back(), Not(HasSubstr("apply_patch"))) << "tools of other kinds are skipped";
}

// The blocks of an assistant's turn, put together from the events of a stream as Anthropic's clients do.
Json BlocksOf(const std::vector<Json>& events, std::string* stop_reason) {
  Json blocks = Json::array();
  std::string arguments;
  for (const Json& event : events) {
    const std::string type = event["type"];
    if (type == "content_block_start") {
      blocks.push_back(event["content_block"]);
      arguments.clear();
    } else if (type == "content_block_delta") {
      const Json& delta = event["delta"];
      Json& block = blocks.back();
      if (delta["type"] == "text_delta") block["text"] = block["text"].get<std::string>() + delta["text"].get<std::string>();
      if (delta["type"] == "thinking_delta")
        block["thinking"] = block["thinking"].get<std::string>() + delta["thinking"].get<std::string>();
      if (delta["type"] == "signature_delta") block["signature"] = delta["signature"];
      if (delta["type"] == "input_json_delta") arguments += delta["partial_json"].get<std::string>();
    } else if (type == "content_block_stop" && blocks.back()["type"] == "tool_use") {
      blocks.back()["input"] = Json::parse(arguments);
    } else if (type == "message_delta") {
      *stop_reason = event["delta"]["stop_reason"];
    }
  }
  return blocks;
}

TEST_F(AgentsTest, ClaudeCodeGetsEveryCallOfTenTurns) {
  Json body = Json::parse(R"({"model": "claude-any", "max_tokens": 32000, "stream": true, "temperature": 1,
      "thinking": {"type": "enabled", "budget_tokens": 31999}, "metadata": {"user_id": "user_1_account__session_2"},
      "system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.0; cch=TURN;"},
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}}],
      "messages": [{"role": "user", "content": [{"type": "text", "text": "<system-reminder>"},
        {"type": "text", "text": "Do ten steps.", "cache_control": {"type": "ephemeral"}}]}],
      "tools": [{"name": "shell", "description": "Runs a command.", "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}, "required": ["command"],
        "additionalProperties": false}, "cache_control": {"type": "ephemeral"}},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]})");
  const std::string headers =
      "anthropic-version: 2023-06-01\r\nanthropic-beta: interleaved-thinking-2025-05-14\r\nx-app: cli\r\n";
  std::string stop_reason;
  for (int turn = 0; turn < kTurns; ++turn) {
    body["system"][0]["text"] = "x-anthropic-billing-header: cc_version=2.0; cch=" + std::to_string(turn) + ";";
    const Json blocks = BlocksOf(Stream("/v1/messages?beta=true", body, headers), &stop_reason);
    EXPECT_EQ(stop_reason, "tool_use") << turn;
    ASSERT_EQ(blocks.back()["type"], "tool_use") << blocks;
    EXPECT_EQ(blocks.back()["input"], Json::parse(ArgumentsOf(turn)));
    EXPECT_EQ(blocks[0]["thinking"], ThoughtOf(turn));
    body["messages"].push_back({{"role", "assistant"}, {"content", blocks}});
    Json result = {{"type", "tool_result"},
                   {"tool_use_id", blocks.back()["id"]},
                   {"is_error", turn % 2 == 1},
                   {"content", {{{"type", "text"}, {"text", ResultOf(turn)}}}}};
    if (turn % 3 == 0) result["content"] = ResultOf(turn);
    if (turn + 1 == kTurns) result["cache_control"] = {{"type", "ephemeral"}};
    body["messages"].push_back({{"role", "user"}, {"content", {result}}});
  }
  const Json last = BlocksOf(Stream("/v1/messages?beta=true", body, headers), &stop_reason);
  EXPECT_EQ(stop_reason, "end_turn");
  EXPECT_EQ(last.back()["text"], "All done.");
  for (size_t turn = 1; turn < prompts_.size(); ++turn) {
    const size_t same = prompts_[turn - 1].size() - std::string("<|start|>assistant").size();
    EXPECT_EQ(prompts_[turn].compare(0, same, prompts_[turn - 1], 0, same), 0)
        << "a turn begins with the whole one before: " << turn;
  }

  HttpClient client(gateway_->port());
  for (const char* const field : {"stream", "max_tokens", "metadata", "temperature"}) body.erase(field);
  client.Send(Post("/v1/messages/count_tokens?beta=true", body.dump(), headers));
  const Json count = Json::parse(BodyOf(client.ReadAnswer()));
  EXPECT_EQ(count["input_tokens"], prompts_.back().size());
}

TEST_F(AgentsTest, ChatGetsEveryCallOfTenTurns) {
  Json body = Json::parse(R"({"model": "any", "messages": [{"role": "user", "content": "Do ten steps."}],
      "tools": [{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}]})");
  const auto ask = [&] {
    HttpClient client(gateway_->port());
    client.Send(Post("/v1/chat/completions", body.dump()));
    return Json::parse(BodyOf(client.ReadAnswer()))["choices"][0];
  };
  for (int turn = 0; turn < kTurns; ++turn) {
    const Json choice = ask();
    ASSERT_EQ(choice["finish_reason"], "tool_calls") << choice;
    const Json& call = choice["message"]["tool_calls"][0];
    EXPECT_EQ(call["function"]["arguments"], ArgumentsOf(turn));
    body["messages"].push_back(choice["message"]);
    body["messages"].push_back({{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", ResultOf(turn)}});
  }
  EXPECT_EQ(ask()["message"]["content"], "All done.");
}

}  // namespace
}  // namespace ferry
