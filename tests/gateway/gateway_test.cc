// The whole gateway in front of a coordinator that a test scripts.

#include "gateway/gateway.h"

#include <unistd.h>

#include <filesystem>
#include <future>
#include <regex>
#include <thread>

#include "common/deadline.h"
#include "common/small_file.h"
#include "common/tls/cluster_ca.h"
#include "gateway/engine_client.h"
#include "gateway/json/json.h"
#include "tests/gateway/fake_coordinator.h"
#include "tests/gateway/http_client.h"
#include "tests/gateway/https_client.h"
#include "tests/testing/self_signed.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

class GatewayTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(GatewayOptions options, FakeCoordinator* coordinator = nullptr) {
    gateway_.reset();
    options.listen = "127.0.0.1:0";
    if (options.coordinator == GatewayOptions().coordinator)
      options.coordinator = (coordinator == nullptr ? coordinator_ : *coordinator).address();
    absl::StatusOr<std::unique_ptr<Gateway>> started = Gateway::Start(options);
    ASSERT_OK(started);
    gateway_ = *std::move(started);
  }
  HttpClient Connect() { return HttpClient(gateway_->port()); }
  std::string Ask(const std::string& request) {
    HttpClient client = Connect();
    client.Send(request);
    return client.ReadAnswer();
  }
  Json AskJson(const std::string& request, int want = 200) {
    const std::string answer = Ask(request);
    EXPECT_EQ(StatusOfAnswer(answer), want) << answer;
    return Json::parse(BodyOf(answer), nullptr, /*allow_exceptions=*/false);
  }
  bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::In(absl::Seconds(20));
    while (!condition() && !deadline.Passed()) absl::SleepFor(absl::Milliseconds(5));
    return condition();
  }

  FakeCoordinator coordinator_;
  std::unique_ptr<Gateway> gateway_;
};

TEST_F(GatewayTest, SaysWhetherItIsWell) {
  EXPECT_EQ(AskJson(Get("/health"))["status"], "ok");
  coordinator_.SetInfo([](auto& info) { info.set_state("loading"); });
  const std::string loading = Ask(Get("/health"));
  EXPECT_EQ(StatusOfAnswer(loading), 503);
  EXPECT_THAT(loading, HasSubstr("Retry-After: "));
  coordinator_.SetInfo([](auto& info) { info.set_state("degraded"), info.set_state_reason("worker 1 is lost"); });
  EXPECT_THAT(Ask(Get("/health")), HasSubstr("worker 1 is lost"));
}

TEST_F(GatewayTest, DescribesModelAndServer) {
  EXPECT_EQ(AskJson(Get("/v1/models"))["data"][0]["id"], "fake");
  EXPECT_EQ(AskJson(Get("/v1/models/fake"))["max_model_len"], 4096);
  EXPECT_EQ(AskJson(Get("/v1/models/other"), 404)["error"]["param"], "model");
  coordinator_.SetInfo([](auto& info) { info.set_running_requests(1); });
  EXPECT_EQ(AskJson(Get("/props"))["total_slots"], 2);
  EXPECT_EQ(AskJson(Get("/props"))["can_chat"], false);
  const Json slots = AskJson(Get("/slots"));
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_TRUE(slots[0]["is_processing"]);
  EXPECT_FALSE(slots[1]["is_processing"]);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/slots?fail_on_no_slot=1"))), 200);
  coordinator_.SetInfo([](auto& info) { info.set_running_requests(2); });
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/slots?fail_on_no_slot=1"))), 503);
}

// What llama.cpp's page, SillyTavern and scripts read of /props.
TEST_F(GatewayTest, PropsHasWhatLlamaServersUsersRead) {
  const Json props = AskJson(Get("/props"));
  EXPECT_EQ(props["default_generation_settings"]["n_ctx"], 4096);
  EXPECT_EQ(props["default_generation_settings"]["params"]["top_k"], 40);
  EXPECT_EQ(props["model_path"], "fake");
  EXPECT_TRUE(props["chat_template"].is_string());
  EXPECT_TRUE(props["bos_token"].is_string());
  EXPECT_TRUE(props["eos_token"].is_string());
  EXPECT_EQ(props["modalities"]["vision"], false);
  EXPECT_THAT(props["build_info"].get<std::string>(), HasSubstr("ferry"));
}

TEST_F(GatewayTest, DescribesTheModelInAnthropicsForm) {
  const std::string header = "anthropic-version: 2023-06-01\r\n";
  const Json models = AskJson(Get("/v1/models", header));
  EXPECT_EQ(models["data"][0]["type"], "model");
  EXPECT_EQ(models["data"][0]["display_name"], "fake");
  EXPECT_EQ(models["has_more"], false);
  EXPECT_EQ(AskJson(Get("/v1/models/fake", header))["type"], "model");
}

TEST_F(GatewayTest, TokenizesAndDetokenizes) {
  EXPECT_EQ(AskJson(Post("/tokenize", R"({"content": "ab"})"))["tokens"], Json({97, 98}));
  EXPECT_EQ(AskJson(Post("/tokenize", R"({"prompt": "ab"})"))["count"], 2);
  EXPECT_EQ(AskJson(Post("/detokenize", R"({"tokens": [97, 98]})"))["content"], "ab");
  EXPECT_EQ(AskJson(Post("/detokenize", R"({"tokens": [200]})"), 400)["error"]["param"], "ids[0]");
  EXPECT_EQ(AskJson(Post("/tokenize", "{}"), 400)["error"]["param"], "content");
  EXPECT_EQ(AskJson(Post("/tokenize", R"({"messages": []})"), 400)["error"]["param"], "messages");
  const Json pieces = AskJson(Post("/tokenize", R"({"content": "a\u00e4", "with_pieces": true})"))["tokens"];
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0], Json::parse(R"({"id": 97, "piece": "a"})"));
  EXPECT_EQ(pieces[1], Json::parse(R"({"id": 195, "piece": [195]})")) << "half a character";
}

TEST_F(GatewayTest, CompletesAPrompt) {
  coordinator_.SetScript(FakeCoordinator::Says({"once", " upon"}));
  const Json answer = AskJson(Post("/v1/completions", R"({"prompt": "Say", "temperature": 0})"));
  EXPECT_EQ(answer["choices"][0]["text"], "once upon");
  EXPECT_EQ(answer["model"], "fake");
  ASSERT_EQ(coordinator_.requests().size(), 1u);
  EXPECT_EQ(coordinator_.requests()[0].text(), "Say");
}

TEST_F(GatewayTest, AnswersInLlamaServersForm) {
  coordinator_.SetScript(FakeCoordinator::Says({"once", " upon"}));
  for (const char* const path : {"/completion", "/completions"}) {
    const Json answer = AskJson(Post(path, R"({"prompt": "Say", "n_predict": 9})"));
    EXPECT_EQ(answer["content"], "once upon") << path;
    EXPECT_EQ(answer["stop_type"], "eos");
    EXPECT_EQ(answer["model"], "fake");
  }
  EXPECT_EQ(coordinator_.requests().at(0).max_tokens(), 9u);
  EXPECT_EQ(AskJson(Get("/models"))["data"][0]["id"], "fake");
}

TEST_F(GatewayTest, SaysWhyItHasNoEmbeddings) {
  const Json error = AskJson(Post("/v1/embeddings", R"({"input": "x"})"), 404)["error"];
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("no embeddings"));
}

TEST_F(GatewayTest, StreamsACompletion) {
  coordinator_.SetScript(FakeCoordinator::Says({"once", " upon"}));
  HttpClient client = Connect();
  client.Send(Post("/v1/completions", R"({"prompt": "Say", "stream": true})"));
  const std::string answer = client.ReadUntilHas("0\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("text/event-stream"));
  EXPECT_LT(answer.find("once"), answer.find("upon"));
  EXPECT_THAT(answer, HasSubstr("data: [DONE]"));
}

TEST_F(GatewayTest, EchoesIdsAsText) {
  const Json answer = AskJson(Post("/v1/completions", R"({"prompt": [[97], [98]], "echo": true, "n": 2})"));
  ASSERT_EQ(answer["choices"].size(), 4u);
  EXPECT_EQ(answer["choices"][1]["text"], "ahello");
  EXPECT_EQ(answer["choices"][2]["text"], "bhello");
}

// A template that writes the roles, and nothing else.
constexpr char kTemplate[] =
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}";

class ChatTest : public GatewayTest {
 protected:
  void SetUp() override {
    coordinator_.SetModel("fake", kTemplate);
    coordinator_.SetScript([](const v1::GenerateRequest&, const auto& write) {
      for (const char* const piece : {"Hel", "lo", "!"}) write(FakeCoordinator::Saying(piece));
      v1::GenerateResponse last;
      last.mutable_finish()->set_reason(v1::Finish::STOP);
      write(last);
      return grpc::Status::OK;
    });
    GatewayTest::SetUp();
  }
  // The prompt of the only request, a byte a token.
  std::string Prompt() {
    std::string text;
    const std::vector<v1::GenerateRequest> requests = coordinator_.requests();
    for (const uint32_t id : requests.at(0).tokens().ids()) text.push_back(static_cast<char>(id));
    return text;
  }
};

TEST_F(ChatTest, AnswersInEveryApi) {
  const std::string messages = R"("messages": [{"role": "user", "content": "hi"}])";
  const Json chat = AskJson(Post("/v1/chat/completions", "{" + messages + "}"));
  EXPECT_EQ(chat["choices"][0]["message"]["content"], "Hello!");
  EXPECT_EQ(chat["model"], "fake");
  EXPECT_EQ(Prompt(), "<user>hi<assistant>");
  EXPECT_EQ(AskJson(Post("/v1/messages", "{\"max_tokens\": 9, " + messages + "}"))["content"][0]["text"], "Hello!");
  EXPECT_EQ(AskJson(Post("/v1/responses", R"({"input": "hi"})"))["output"][0]["content"][0]["text"], "Hello!");
  EXPECT_EQ(AskJson(Post("/v1/messages/count_tokens", "{" + messages + "}"))["input_tokens"], 19);
  EXPECT_EQ(AskJson(Post("/apply-template", "{" + messages + "}"))["prompt"], "<user>hi<assistant>");
}

TEST_F(ChatTest, StreamsInEveryApi) {
  const auto stream = [&](const std::string& path, const std::string& body) {
    HttpClient client = Connect();
    client.Send(Post(path, body));
    return std::string(client.ReadUntilHas("0\r\n\r\n"));
  };
  EXPECT_THAT(stream("/v1/chat/completions", R"({"stream": true, "messages": [{"role": "user", "content": "hi"}]})"),
              HasSubstr("data: [DONE]"));
  EXPECT_THAT(stream("/v1/messages", R"({"stream": true, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})"),
              HasSubstr("event: message_stop"));
  EXPECT_THAT(stream("/v1/responses", R"({"stream": true, "input": "hi"})"), HasSubstr("event: response.completed"));
}

TEST_F(ChatTest, AStopStringEndsTheGeneration) {
  const Json answer = AskJson(Post("/v1/chat/completions", R"({"stop": "lo", "messages": [{"role": "user", "content": "hi"}]})"));
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "Hel");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 5);
}

TEST_F(ChatTest, ATemplateOfTheGatewaysOwnComesFirst) {
  Start({.chat_template = "{{ messages[0].content }}?"});
  EXPECT_EQ(AskJson(Post("/apply-template", R"({"messages": [{"role": "user", "content": "hi"}]})"))["prompt"], "hi?");
}

TEST_F(ChatTest, RefusesInTheFormOfTheApi) {
  EXPECT_EQ(AskJson(Post("/v1/messages", "{}"), 400)["error"]["type"], "invalid_request_error");
  EXPECT_EQ(AskJson(Post("/v1/messages", "{}"), 400)["type"], "error");
  EXPECT_EQ(AskJson(Post("/v1/responses", "{}"), 400)["error"]["param"], "input");
  EXPECT_EQ(AskJson(Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": 5}]})"), 400)["error"]["param"],
            "messages[0].content");
  EXPECT_EQ(AskJson(Post("/v1/chat/completions", R"({"messages": [5]})"), 400)["error"]["param"], "messages[0]");
}

TEST_F(ChatTest, EveryRoutePassesThePriorityOn) {
  const std::string chat = R"({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "priority": -7})";
  for (const auto& [path, body] :
       {std::pair("/v1/completions", std::string(R"({"prompt": "x", "priority": -7})")),
        std::pair("/completion", std::string(R"({"prompt": "x", "priority": -7})")), std::pair("/v1/chat/completions", chat),
        std::pair("/v1/messages", chat), std::pair("/v1/responses", std::string(R"({"input": "hi", "priority": -7})"))}) {
    AskJson(Post(path, body));
    ASSERT_FALSE(coordinator_.requests().empty()) << path;
    EXPECT_EQ(coordinator_.requests().back().priority(), -7) << path;
  }
  EXPECT_EQ(coordinator_.requests().size(), 5u);
  EXPECT_EQ(AskJson(Post("/v1/completions", R"({"prompt": "x", "priority": 0.5})"), 400)["error"]["param"], "priority");
  AskJson(Post("/v1/completions", R"({"prompt": "x"})"));
  EXPECT_EQ(coordinator_.requests().back().priority(), 0);
}

TEST_F(GatewayTest, SaysThatAModelWithoutATemplateCannotChat) {
  const std::string answer = Ask(Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "hi"}]})"));
  EXPECT_EQ(StatusOfAnswer(answer), 400);
  EXPECT_THAT(answer, HasSubstr("chat template"));
}

TEST_F(GatewayTest, CancelsWhenTheClientLeaves) {
  coordinator_.SetScript(FakeCoordinator::GoesOn());
  for (const char* const stream : {"true", "false"}) {
    const int before = coordinator_.cancelled();
    HttpClient client = Connect();
    client.Send(Post("/v1/completions", std::string(R"({"prompt": "x", "stream": )") + stream + "}"));
    ASSERT_TRUE(Eventually([&] { return coordinator_.requests().size() > static_cast<size_t>(before); }));
    client.Close();
    EXPECT_TRUE(Eventually([&] { return coordinator_.cancelled() > before; })) << stream;
  }
}

TEST_F(GatewayTest, GivesTheEnginesErrorsTheRightStatus) {
  const auto expect = [&](grpc::StatusCode code, const std::string& message, int status, const char* text) {
    coordinator_.SetScript(FakeCoordinator::Fails(code, message));
    for (const char* const stream : {"true", "false"}) {
      const std::string answer = Ask(Post("/v1/completions", std::string(R"({"prompt": "x", "stream": )") + stream + "}"));
      EXPECT_EQ(StatusOfAnswer(answer), status) << answer;
      EXPECT_THAT(answer, HasSubstr(text));
    }
  };
  expect(grpc::StatusCode::INVALID_ARGUMENT, "top_p is 7, want (0, 1]", 400, R"("param":"top_p")");
  expect(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full", 429, "Retry-After: ");
  expect(grpc::StatusCode::UNAVAILABLE, "worker 1 is lost", 503, "worker 1 is lost");
  expect(grpc::StatusCode::DEADLINE_EXCEEDED, "step 5", 504, "step 5");
  expect(grpc::StatusCode::INTERNAL, "secret pointer", 500, "log says why");
}

TEST_F(GatewayTest, AnErrorBehindTheFirstTokenEndsTheStream) {
  coordinator_.SetScript([](const v1::GenerateRequest&, const auto& write) {
    v1::GenerateResponse message;
    message.add_token_ids(1);
    message.set_text("half");
    write(message);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "worker 1 is lost");
  });
  HttpClient client = Connect();
  client.Send(Post("/v1/completions", R"({"prompt": "x", "stream": true})"));
  const std::string answer = client.ReadUntilHas("0\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("half"));
  EXPECT_THAT(answer, HasSubstr("worker 1 is lost"));
  EXPECT_THAT(answer, ::testing::Not(HasSubstr("[DONE]")));
}

TEST_F(GatewayTest, AnswersWhileNoCoordinatorIsThere) {
  Start({.coordinator = "127.0.0.1:1"});
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/health"))), 503);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/v1/models"))), 503);
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", R"({"prompt": "x"})"))), 503);
}

TEST_F(GatewayTest, NamesRoutesThatAreNotThereAndMethodsThatAreNotTheirs) {
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/nothing"))), 404);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/v1/../health"))), 404);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("//health"))), 404);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/%68ealth"))), 404);
  const std::string answer = Ask(Get("/v1/completions"));
  EXPECT_EQ(StatusOfAnswer(answer), 405);
  EXPECT_THAT(answer, HasSubstr("Allow: POST"));
  EXPECT_THAT(Ask(Post("/v1/messages/nothing", "{}")), HasSubstr(R"("type":"error")")) << "in Anthropic's form";
}

TEST_F(GatewayTest, EveryRouteButHealthAndThePageAsksWhoComes) {
  Start({.access = [](const HttpRequest&) { return absl::UnauthenticatedError("no key"); }});
  for (const std::string& request : {Get("/v1/models"), Get("/props"), Get("/slots"), Get("/metrics"), Get("/engine"),
                                     Get("/nothing"), Get("/page/"), Get("/page/nothing"), Post("/v1/completions", "{}"),
                                     Post("/tokenize", "{}"), Get("/health/"), Get("/health?x/../v1/models")}) {
    const bool open = request.starts_with("GET /health?");
    EXPECT_EQ(StatusOfAnswer(Ask(request)), open ? 200 : 401) << request;
  }
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/health"))), 200);
}

TEST_F(ChatTest, TheClientsKeyIsTheCoordinatorsToJudge) {
  coordinator_.WantKey("fk-alice");
  const std::string chat = R"({"messages": [{"role": "user", "content": "hi"}]})";
  const std::string message = R"({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})";
  const auto requests = [&](const std::string& header) {
    return std::vector<std::string>{Get("/v1/models", header),
                                    Get("/v1/models/fake", header),
                                    Get("/props", header),
                                    Get("/slots", header),
                                    Get("/metrics", header),
                                    Post("/v1/completions", R"({"prompt": "x"})", header),
                                    Post("/tokenize", R"({"content": "x"})", header),
                                    Post("/detokenize", R"({"tokens": [65]})", header),
                                    Post("/apply-template", chat, header),
                                    Post("/v1/chat/completions", chat, header),
                                    Post("/v1/responses", R"({"input": "hi"})", header),
                                    Post("/v1/messages", message, header)};
  };
  for (const bool cached : {false, true}) {
    for (const std::string& header :
         {std::string(), std::string("Authorization: Bearer fk-bob\r\n"), "x-api-key: " + std::string(2000, 'a') + "\r\n"}) {
      for (const std::string& request : requests(header)) EXPECT_EQ(StatusOfAnswer(Ask(request)), 401) << request << cached;
    }
    for (const std::string header : {"Authorization: Bearer fk-alice\r\n", "x-api-key: fk-alice\r\n"}) {
      for (const std::string& request : requests(header)) EXPECT_EQ(StatusOfAnswer(Ask(request)), 200) << request;
    }
  }
  EXPECT_EQ(AskJson(Post("/v1/messages", message), 401)["error"]["type"], "authentication_error");
  EXPECT_EQ(AskJson(Post("/v1/chat/completions", chat), 401)["error"]["type"], "authentication_error");
}

TEST_F(GatewayTest, HealthNeedsNoKey) {
  coordinator_.WantKey("fk-alice");
  coordinator_.SetServing(true);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/health"))), 200);
  coordinator_.SetServing(false);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/health"))), 503);
}

TEST_F(GatewayTest, ThePageIsServedWithoutAKeyAndTrustsNoOtherOrigin) {
  Start({.access = [](const HttpRequest&) { return absl::UnauthenticatedError("no key"); }});
  const std::string page = Ask(Get("/"));
  EXPECT_EQ(StatusOfAnswer(page), 200);
  EXPECT_THAT(page, HasSubstr("Content-Type: text/html; charset=utf-8\r\n"));
  EXPECT_THAT(page, HasSubstr("Content-Security-Policy: default-src 'none'; script-src 'self';"));
  EXPECT_THAT(page, HasSubstr("X-Content-Type-Options: nosniff\r\n"));
  const std::regex file(R"re((?:src|href)="(page/[a-z_.]+)")re");
  int files = 0;
  for (std::sregex_iterator found(page.begin(), page.end(), file), end; found != end; ++found, ++files) {
    EXPECT_EQ(StatusOfAnswer(Ask(Get("/" + (*found)[1].str()))), 200) << (*found)[1];
  }
  EXPECT_GE(files, 4);
  EXPECT_THAT(Ask(Get("/page/main.js")), HasSubstr("Content-Type: text/javascript; charset=utf-8\r\n"));
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/", "{}"))), 405);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/page/../health"))), 401);
}

TEST_F(GatewayTest, TheEngineRoomIsForAdmins) {
  AskJson(Get("/engine"), 403);
  coordinator_.SetInfo([](auto& info) {
    info.set_pid(7);  // what a key of the role user is not told
    v1::WorkerInfo* const worker = info.add_workers();
    worker->set_end_layer(4);
    worker->mutable_experts()->set_bytes_shipped(uint64_t{1} << 40);
  });
  const Json engine = AskJson(Get("/engine"));
  EXPECT_EQ(engine["workers"][0]["end_layer"], 4);
  EXPECT_EQ(engine["workers"][0]["experts"]["bytes_shipped"], uint64_t{1} << 40);
  EXPECT_EQ(engine["requests"]["places"], 2);
}

class TlsTest : public GatewayTest {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/tls-" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    files_ = SelfSigned::Write(folder_, "server");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  static std::string Closing(const std::string& path) { return Get(path, "Connection: close\r\n"); }

  std::string folder_;
  SelfSigned files_;
};

TEST_F(TlsTest, ServesHttpsWithACertificate) {
  Start({.tls_certificate = files_.certificate, .tls_key = files_.key});
  const std::string answer = AskHttps(gateway_->port(), files_.certificate, Closing("/v1/models"));
  EXPECT_EQ(StatusOfAnswer(answer), 200);
  EXPECT_EQ(Json::parse(BodyOf(answer))["data"][0]["id"], "fake");
  EXPECT_EQ(StatusOfAnswer(Ask(Closing("/v1/models"))), 0) << "HTTP is none there";
  EXPECT_EQ(StatusOfAnswer(AskHttps(gateway_->port(), files_.certificate, Closing("/v1/models"))), 200)
      << "nobody else is affected";
  coordinator_.SetScript(FakeCoordinator::Says({"once", " upon"}));
  const std::string stream = AskHttps(gateway_->port(), files_.certificate,
                                      Post("/v1/completions", R"({"prompt": "x", "stream": true})", "Connection: close\r\n"));
  EXPECT_THAT(stream, HasSubstr("data: [DONE]"));
}

TEST_F(TlsTest, RefusesACertificateThatCannotBeUsed) {
  const SelfSigned other = SelfSigned::Write(folder_, "other");
  const auto start = [&](const std::string& certificate, const std::string& key) {
    return Gateway::Start({.listen = "127.0.0.1:0", .tls_certificate = certificate, .tls_key = key}).status();
  };
  EXPECT_THAT(start("/nowhere", files_.key), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--tls-cert")));
  EXPECT_THAT(start(files_.certificate, "/nowhere"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--tls-key")));
  EXPECT_THAT(start(files_.certificate, other.key), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--tls-key")));
}

TEST_F(TlsTest, CallsACoordinatorOverTls) {
  const std::string certificate = *ReadSmallFile(files_.certificate), key = *ReadSmallFile(files_.key);
  grpc::SslServerCredentialsOptions tls;
  tls.pem_key_cert_pairs.push_back({.private_key = key, .cert_chain = certificate});
  FakeCoordinator coordinator(grpc::SslServerCredentials(tls));
  Start({.coordinator_ca = certificate}, &coordinator);
  EXPECT_EQ(AskJson(Get("/v1/models"))["data"][0]["id"], "fake");
  Start({.coordinator_ca = *ReadSmallFile(SelfSigned::Write(folder_, "other").certificate)}, &coordinator);
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/v1/models"))), 503) << "another's certificate";
}

TEST_F(GatewayTest, PagesOfOtherOriginsAreLetInByName) {
  const std::string page = "Origin: https://chat.example\r\n";
  const std::string preflight = "OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + page +
                                "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n";
  EXPECT_EQ(StatusOfAnswer(Ask(preflight)), 405);
  EXPECT_THAT(Ask(Get("/v1/models", page)), ::testing::Not(HasSubstr("Access-Control")));
  for (const char* const allowed : {"https://chat.example", "*"}) {
    Start({.origins = {allowed}, .access = [](const HttpRequest& request) {
             return request.Header("authorization").empty() ? absl::UnauthenticatedError("no key") : absl::OkStatus();
           }});
    const std::string answer = Ask(preflight);
    EXPECT_EQ(StatusOfAnswer(answer), 204) << "browsers send no key with it";
    EXPECT_THAT(answer, HasSubstr("Access-Control-Allow-Origin: https://chat.example\r\n"));
    EXPECT_THAT(answer, HasSubstr("authorization"));
    EXPECT_THAT(Ask(Get("/v1/models", page)), HasSubstr("Access-Control-Allow-Origin: https://chat.example\r\n")) << "a 401, too";
  }
  Start({.origins = {"https://other.example"}});
  EXPECT_EQ(StatusOfAnswer(Ask(preflight)), 405);
  EXPECT_THAT(Ask(Get("/v1/models", page)), ::testing::Not(HasSubstr("Access-Control-Allow-Origin")));
}

TEST_F(GatewayTest, ReadsJsonAlone) {
  const auto post = [](const std::string& type) {
    return "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + type + "Content-Length: 16\r\n\r\n{\"content\": \"ab\"";
  };
  for (const char* const type :
       {"", "Content-Type: application/json; charset=utf-8\r\n", "Content-Type: APPLICATION/JSON\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n", "Content-Type: application/ld+json\r\n"}) {
    EXPECT_EQ(StatusOfAnswer(Ask(post(type))), 400) << "a bracket is missing: " << type;
  }
  for (const char* const type : {"Content-Type: text/plain\r\n", "Content-Type: multipart/form-data; boundary=x\r\n"}) {
    EXPECT_EQ(StatusOfAnswer(Ask(post(type))), 415) << type;
  }
}

TEST_F(GatewayTest, ATextThatTheCoordinatorWouldNotReadIsTooLarge) {
  const std::string text(5 << 20, 'a');
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", "{\"prompt\": \"" + text + "\"}"))), 413);
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/tokenize", "{\"content\": \"" + text + "\"}"))), 413);
}

TEST_F(GatewayTest, EveryAnswerNamesItsRequest) {
  EXPECT_THAT(Ask(Get("/health")), HasSubstr("x-request-id: req_"));
  EXPECT_THAT(Ask(Get("/nothing", "x-request-id: mine-1\r\n")), HasSubstr("x-request-id: mine-1\r\n"));
  EXPECT_THAT(Ask(Get("/health", "x-request-id: two words\r\n")), HasSubstr("x-request-id: req_"));
  Ask(Post("/v1/completions", R"({"prompt": "x"})", "x-request-id: mine-2\r\n"));
  EXPECT_EQ(coordinator_.requests().at(0).request_id(), "mine-2");
}

TEST_F(ChatTest, TellsHowFarThePromptIsAndWhatStoppedIt) {
  const auto script = [](const v1::GenerateRequest& request, const auto& write) {
    v1::GenerateResponse progress;
    progress.mutable_prompt_progress()->set_total(9);
    progress.mutable_prompt_progress()->set_processed(4);
    if (request.prompt_progress()) write(progress);
    write(FakeCoordinator::Saying("Hello"));
    v1::GenerateResponse last;
    last.mutable_finish()->set_reason(v1::Finish::STOP);
    last.mutable_finish()->set_matched_stop("END");
    write(last);
    return grpc::Status::OK;
  };
  coordinator_.SetScript(script);
  for (const auto& [path, body] : {std::pair("/v1/completions", R"("prompt": "x")"),
                                   std::pair("/v1/chat/completions", R"("messages": [{"role": "user", "content": "hi"}])")}) {
    HttpClient client = Connect();
    client.Send(Post(path, std::string("{\"stream\": true, \"return_progress\": true, ") + body + "}"));
    EXPECT_THAT(client.ReadUntilHas("0\r\n\r\n"),
                HasSubstr(R"("prompt_progress":{"total":9,"cache":0,"processed":4,"time_ms":0})"))
        << path;
  }
  EXPECT_EQ(AskJson(Post("/v1/completions", R"({"prompt": "x", "stop": "END"})"))["choices"][0]["stop_reason"], "END");
  EXPECT_EQ(AskJson(Post("/v1/chat/completions",
                         R"({"stop": "lo", "messages": [{"role": "user", "content": "hi"}]})"))["choices"][0]["stop_reason"],
            "lo");
}

TEST_F(GatewayTest, RefusesWhatIsNoJson) {
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", "{"))), 400);
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", std::string(1'000'000, '[')))), 400);
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", "{\"prompt\": \"\xff\"}"))), 400);
  EXPECT_EQ(StatusOfAnswer(Ask(Post("/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 1e400}"))), 400);
}

TEST_F(GatewayTest, ServesManyStreamsAtOnce) {
  coordinator_.SetScript(FakeCoordinator::Says({"a", "b", "c"}));
  std::vector<HttpClient> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().Send(Post("/v1/completions", R"({"prompt": "x", "stream": true})")));
  }
  for (HttpClient& client : clients) EXPECT_THAT(client.ReadUntilHas("0\r\n\r\n"), HasSubstr("[DONE]"));
}

// As the gateway ends while answers do.
TEST(EngineClient, MayGoWhileItsCallsEnd) {
  FakeCoordinator coordinator;
  const std::string address = coordinator.address();
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 25; ++round) {
        const std::unique_ptr<EngineClient> client = *EngineClient::Create(address);
        std::promise<void> end;
        client->As("")->Generate(
            {}, [](const v1::GenerateResponse&) {}, [&](const absl::Status&) { end.set_value(); });
        end.get_future().wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ferry
