// `ferry serve` with its HTTP gateway, the real one in front of real workers.

#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/gateway_process.h"
#include "common/access/api_keys.h"
#include "tests/cluster/cluster.h"
#include "tests/gateway/http_client.h"
#include "tests/gateway/https_client.h"
#include "tests/testing/loopback_listener.h"
#include "tests/testing/self_signed.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

int FreePort() { return LoopbackListener().port(); }

GatewayProcess GatewayOn(int port, bool required) {
  return {.arguments = {"--listen", "127.0.0.1:" + std::to_string(port), "--log-level", "warn"}, .required = required};
}

std::string Ask(int port, const std::string& request) {
  HttpClient client(port);
  return client.connected() && client.Send(request) ? client.ReadAnswer() : "";
}
bool ServesOn(int port) {
  return Eventually(absl::Seconds(60), [&] { return StatusOfAnswer(Ask(port, Get("/health"))) == 200; });
}

// The child of this process that runs ferry-gateway.
pid_t GatewayPid() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(entry.path() / "children");
    for (pid_t pid; children >> pid;) {
      std::string name;
      std::ifstream("/proc/" + std::to_string(pid) + "/comm") >> name;
      if (name == "ferry-gateway") return pid;
    }
  }
  return -1;
}

TEST(Http, SaysWhatGrpcSays) {
  const int port = FreePort();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(DemoModel(1), GatewayOn(port, true)));
  ASSERT_TRUE(ServesOn(port));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Attach(supervisor->address()));
  const GoldenContinuation golden = GoldenContinuations().at(0);
  ASSERT_OK_AND_ASSIGN(const Completion want, Greedy(*client, golden.prompt, 24));
  const nlohmann::json body = {
      {"prompt", golden.prompt}, {"max_tokens", 24}, {"temperature", 0}, {"ignore_eos", true}, {"logprobs", 0}};
  const std::string answer = Ask(port, Post("/v1/completions", body.dump()));
  ASSERT_EQ(StatusOfAnswer(answer), 200) << answer;
  const nlohmann::json completion = nlohmann::json::parse(BodyOf(answer));
  EXPECT_EQ(completion["choices"][0]["text"], want.text);
  EXPECT_EQ(completion["usage"]["completion_tokens"], 24);
  const nlohmann::json logprobs = completion["choices"][0]["logprobs"]["token_logprobs"];
  ASSERT_EQ(logprobs.size(), want.logprobs.size());
  for (size_t i = 0; i < want.logprobs.size(); ++i) EXPECT_NEAR(logprobs[i], want.logprobs[i], 1e-6);
}

// Each goes on until its client leaves, or for a minute; there is one place.
TEST(Http, OfThoseThatWaitTheLowestPriorityNumberGoesFirst) {
  const int port = FreePort();
  ModelOptions options = DemoModel(1);
  options.parallel = 1;
  options.context = 65536;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(options, GatewayOn(port, true)));
  ASSERT_TRUE(ServesOn(port));
  const auto ask = [&](HttpClient& client, int priority) {
    const nlohmann::json body = {
        {"prompt", "Once"}, {"max_tokens", -1}, {"ignore_eos", true}, {"stream", true}, {"priority", priority}};
    return client.Send(Post("/v1/completions", body.dump()));
  };
  const auto says = [](HttpClient& client, absl::Duration patience) {
    const auto any = [](const std::string& read) { return read.find("data: ") != std::string::npos; };
    return any(client.ReadUntil(any, patience));
  };
  const auto waiting = [&](int want) {
    return Eventually(absl::Seconds(30), [&] {
      const nlohmann::json engine = nlohmann::json::parse(BodyOf(Ask(port, Get("/engine"))), nullptr, false);
      return engine.is_object() && engine.contains("requests") && engine["requests"]["queued"] == want;
    });
  };
  HttpClient running(port), last(port), first(port);
  ASSERT_TRUE(ask(running, 0));
  ASSERT_TRUE(says(running, absl::Seconds(30)));
  ASSERT_TRUE(ask(last, 5));
  ASSERT_TRUE(waiting(1));
  ASSERT_TRUE(ask(first, -5));
  ASSERT_TRUE(waiting(2));
  running.Close();
  EXPECT_TRUE(says(first, absl::Seconds(30)));
  EXPECT_FALSE(says(last, absl::Milliseconds(1)));
}

// A template in front of the bundled model, which has none: its answers are noise, and constraints make them calls.
class TemplateFile {
 public:
  TemplateFile() : path_(std::filesystem::temp_directory_path() / ("ferry-template-" + std::to_string(getpid()))) {
    std::ofstream(path_) << "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                            "{# <tool_call> #}<|im_start|>assistant\n";
  }
  ~TemplateFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_; }

 private:
  const std::filesystem::path path_;
};

TEST(Http, ConstrainedAnswersKeepTheirFormAtAnyTemperature) {
  const int port = FreePort();
  const TemplateFile chat_template;
  GatewayProcess gateway = GatewayOn(port, true);
  gateway.arguments.insert(gateway.arguments.end(), {"--chat-template-file", chat_template.path()});
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(DemoModel(1), gateway));
  ASSERT_TRUE(ServesOn(port));
  const auto ask = [&](const std::string& path, nlohmann::json body) {
    body.update({{"temperature", 1.5}, {"top_k", 0}, {"min_p", 0}, {"max_tokens", 2000}});
    const std::string answer = Ask(port, Post(path, body.dump()));
    EXPECT_EQ(StatusOfAnswer(answer), 200) << answer;
    return nlohmann::json::parse(BodyOf(answer), nullptr, false);
  };
  const nlohmann::json schema = nlohmann::json::parse(
      R"({"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string", "maxLength": 9}}, "required": ["n", "s"]})");
  const auto expect_match = [](const std::string& text) {
    const nlohmann::json value = nlohmann::json::parse(text, nullptr, false);
    ASSERT_TRUE(value.is_object()) << text;
    EXPECT_TRUE(value["n"].is_number_integer() && value["s"].is_string()) << text;
  };
  const nlohmann::json hello = {{{"role", "user"}, {"content", "Hello"}}};
  for (int seed = 0; seed < 3; ++seed) {
    const nlohmann::json chat = ask(
        "/v1/chat/completions",
        {{"messages", hello},
         {"seed", seed},
         {"response_format", {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"strict", true}, {"schema", schema}}}}}});
    expect_match(chat["choices"][0]["message"]["content"].get<std::string>());
    const nlohmann::json call =
        ask("/v1/chat/completions", {{"messages", hello},
                                     {"seed", seed},
                                     {"tool_choice", {{"type", "function"}, {"function", {{"name", "f"}}}}},
                                     {"tools", {{{"type", "function"}, {"function", {{"name", "f"}, {"parameters", schema}}}}}}});
    ASSERT_EQ(call["choices"][0]["message"]["tool_calls"].size(), 1u) << call;
    EXPECT_EQ(call["choices"][0]["finish_reason"], "tool_calls");
    expect_match(call["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>());
  }
  const nlohmann::json yes = ask("/v1/completions", {{"prompt", "Once"}, {"grammar", "root ::= \"yes\" | \"no\""}});
  EXPECT_THAT(yes["choices"][0]["text"].get<std::string>(), testing::AnyOf("yes", "no"));
}

// The coordinator knows a client by the key that it gives the gateway, and the gateway comes in beside TLS.
TEST(Http, KeysAndCertificatesHoldAtBothDoors) {
  const std::string folder = ::testing::TempDir() + "/doors-" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  const SelfSigned files = SelfSigned::Write(folder, "server");
  const NewApiKey alice = *MakeApiKey("alice", Role::kUser), bob = *MakeApiKey("bob", Role::kUser);
  ModelOptions options = DemoModel(1);
  options.api_keys = folder + "/keys";
  options.tls_cert = files.certificate;
  options.tls_key = files.key;
  std::ofstream(options.api_keys) << alice.line << " tokens-per-minute=20\n";
  ASSERT_EQ(::chmod(options.api_keys.c_str(), 0600), 0);
  const int port = FreePort();
  ASSERT_OK_AND_ASSIGN(const std::optional<GatewayProcess> gateway, GatewayOf({.port = port, .given = true}, options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(options, *gateway));
  const auto ask = [&](const std::string& request) { return AskHttps(port, files.certificate, request); };
  const std::string close = "Connection: close\r\n";
  EXPECT_TRUE(Eventually(absl::Seconds(60), [&] { return StatusOfAnswer(ask(Get("/health", close))) == 200; }));
  const auto complete = [&](const std::string& key) {
    return StatusOfAnswer(
        ask(Post("/v1/completions", R"({"prompt": "Once", "max_tokens": 30, "ignore_eos": true})", key + close)));
  };
  EXPECT_EQ(complete(""), 401);
  EXPECT_EQ(complete("Authorization: Bearer " + bob.key + "\r\n"), 401);
  EXPECT_EQ(complete("Authorization: Bearer " + alice.key + "\r\n"), 200);
  EXPECT_EQ(complete("x-api-key: " + alice.key + "\r\n"), 429) << "alice has used her minute's tokens";
  EXPECT_EQ(StatusOfAnswer(Ask(port, Get("/health", close))), 0) << "there is no HTTP without TLS";
  std::filesystem::remove_all(folder);
}

TEST(Http, AKilledGatewayComesBackAndTheModelStays) {
  const int port = FreePort();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(DemoModel(1), GatewayOn(port, true)));
  ASSERT_TRUE(ServesOn(port));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Attach(supervisor->address()));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse before, client->ServerInfo());
  const pid_t gateway = GatewayPid();
  ASSERT_GT(gateway, 0);
  ASSERT_EQ(kill(gateway, SIGKILL), 0);
  EXPECT_TRUE(Eventually(absl::Seconds(30), [&] { return GatewayPid() > 0 && GatewayPid() != gateway; }));
  EXPECT_TRUE(ServesOn(port));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse after, client->ServerInfo());
  EXPECT_EQ(after.pid(), before.pid());
  EXPECT_OK(supervisor->Health());
}

TEST(Http, AClientThatLeavesFreesItsPlace) {
  const int port = FreePort();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, StartWithGateway(DemoModel(1), GatewayOn(port, true)));
  ASSERT_TRUE(ServesOn(port));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Attach(supervisor->address()));
  const auto running = [&] {
    const absl::StatusOr<proto::GetServerInfoResponse> info = client->ServerInfo();
    return info.ok() ? static_cast<int>(info->running_requests()) : -1;
  };
  HttpClient http(port);
  http.Send(Post("/v1/completions", R"({"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true})"));
  http.ReadUntilHas("data: ");
  EXPECT_EQ(running(), 1);
  http.Close();
  EXPECT_TRUE(Eventually(absl::Seconds(10), [&] { return running() == 0; }));
}

TEST(Http, APortThatIsTakenEndsWhoAskedForItAndNobodyElse) {
  const LoopbackListener taken;
  {
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> asked, StartWithGateway(DemoModel(1), GatewayOn(taken.port(), true)));
    EXPECT_TRUE(Eventually(absl::Seconds(60), [&] { return !asked->Health().ok(); }));
    EXPECT_THAT(asked->Health(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gateway")));
  }
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> by_default,
                       StartWithGateway(DemoModel(1), GatewayOn(taken.port(), false)));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Attach(by_default->address()));
  EXPECT_TRUE(Eventually(absl::Seconds(60), [&] {
    const absl::StatusOr<proto::GetServerInfoResponse> info = client->ServerInfo();
    return info.ok() && info->state() == "serving";
  }));
  EXPECT_OK(by_default->Health());
  EXPECT_EQ(GatewayPid(), -1);
}

}  // namespace
}  // namespace ferry
