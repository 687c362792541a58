// The HTTP side alone, over real sockets, with a service that a test scripts.

#include <atomic>
#include <mutex>
#include <thread>

#include "common/deadline.h"
#include "gateway/http/listener.h"
#include "gateway/http/sse.h"
#include "tests/gateway/http_client.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

class ScriptedService final : public HttpService {
 public:
  std::optional<HttpResponse> Refuse(const HttpRequest& head) override {
    if (head.path == "/forbidden") return HttpResponse{.status = 401, .body = "no"};
    return std::nullopt;
  }
  void Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override {
    if (request.path == "/echo") return exchange->Respond({.body = request.method + " " + request.body});
    if (request.path == "/drop") return;
    if (request.path == "/stream") {
      exchange->BeginStream({.content_type = kSseContentType});
      exchange->Send(SseEvent("1"));
      exchange->Send(SseEvent("2"));
      return exchange->End();
    }
    if (request.path == "/refused-stream") {
      exchange->BeginStream({.content_type = kSseContentType});
      return exchange->Respond({.status = 429, .body = "busy"});
    }
    exchange->OnGone([this] { ++left_; });
    if (request.path == "/quiet") exchange->BeginStream({.content_type = kSseContentType});
    const std::lock_guard lock(mutex_);
    held_.push_back(std::move(exchange));  // the test answers, or nobody
  }
  HttpResponse Error(int status, const std::string& message, const std::string& path) override {
    return {.status = status, .body = path + ": " + message};
  }

  std::shared_ptr<Exchange> Held() {
    const Deadline deadline = Deadline::In(kPatience);
    while (!deadline.Passed()) {
      {
        const std::lock_guard lock(mutex_);
        if (!held_.empty()) return held_.back();
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return nullptr;
  }
  void DropHeld() {
    const std::lock_guard lock(mutex_);
    held_.clear();
  }
  bool SomebodyLeft() {
    const Deadline deadline = Deadline::In(kPatience);
    while (left_ == 0 && !deadline.Passed()) absl::SleepFor(absl::Milliseconds(5));
    return left_ > 0;
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<Exchange>> held_;
  std::atomic<int> left_{0};
};

class HttpServerTest : public ::testing::Test {
 protected:
  void Start(const HttpLimits& limits = {}) {
    absl::StatusOr<std::unique_ptr<HttpListener>> started = HttpListener::Start("127.0.0.1:0", limits, &service_);
    ASSERT_OK(started);
    listener_ = *std::move(started);
  }
  HttpClient Connect() { return HttpClient(listener_->port()); }
  std::string Ask(const std::string& request) {
    HttpClient client = Connect();
    client.Send(request);
    return client.ReadAnswer();
  }
  bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::In(kPatience);
    while (!condition() && !deadline.Passed()) absl::SleepFor(absl::Milliseconds(5));
    return condition();
  }

  void TearDown() override {
    if (listener_ == nullptr) return;
    listener_->Drain(Deadline::In(absl::ZeroDuration()));
    service_.DropHeld();  // the listener outlives every exchange
  }

  ScriptedService service_;
  std::unique_ptr<HttpListener> listener_;
};

TEST_F(HttpServerTest, ServesRequestsOfOneConnectionOneAfterTheOther) {
  Start();
  HttpClient client = Connect();
  for (int i = 0; i < 3; ++i) {
    client.Send(Post("/echo", "body " + std::to_string(i)));
    const std::string answer = client.ReadAnswer();
    EXPECT_EQ(StatusOfAnswer(answer), 200);
    EXPECT_EQ(BodyOf(answer), "POST body " + std::to_string(i));
    EXPECT_THAT(answer, HasSubstr("Connection: keep-alive"));
  }
  client.Send(Get("/echo", "Connection: close\r\n"));
  EXPECT_THAT(client.ReadAll(), HasSubstr("Connection: close"));
}

TEST_F(HttpServerTest, ReadsAHeadAndABodyInAnyPieces) {
  Start();
  const std::string request = Post("/echo", "12345");
  for (size_t cut = 1; cut < request.size(); cut += 7) {
    HttpClient client = Connect();
    client.Send(request.substr(0, cut));
    absl::SleepFor(absl::Milliseconds(2));
    client.Send(request.substr(cut));
    EXPECT_EQ(BodyOf(client.ReadAnswer()), "POST 12345") << cut;
  }
}

TEST_F(HttpServerTest, ReadsChunkedBodies) {
  Start();
  const std::string head = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(BodyOf(Ask(head + "3\r\nabc\r\n2;name=value\r\nde\r\n0\r\n\r\n")), "POST abcde");
  HttpClient client = Connect();
  for (const char c : head + "3\r\nabc\r\n0\r\n\r\n") client.Send(std::string(1, c));
  EXPECT_EQ(BodyOf(client.ReadAnswer()), "POST abc");
  for (const char* const bad : {"x\r\nabc\r\n", "-1\r\n", "3\r\nabcde\r\n", "fffffffffffffffff\r\n", "3 \r\n"}) {
    EXPECT_GE(StatusOfAnswer(Ask(head + bad + "0\r\n\r\n")), 400) << bad;
  }
}

TEST_F(HttpServerTest, TellsAClientThatAsksToGoOn) {
  Start();
  HttpClient client = Connect();
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadAnswer(), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_EQ(BodyOf(client.ReadAnswer()), "POST ok");
}

TEST_F(HttpServerTest, RefusesByTheHeadBeforeTheBodyIsSent) {
  Start();
  EXPECT_EQ(StatusOfAnswer(Ask("POST /forbidden HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")), 401);
  EXPECT_EQ(StatusOfAnswer(Ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")), 413);
  HttpClient client = Connect();  // a refused request without a body leaves the connection as it was
  client.Send(Get("/forbidden"));
  EXPECT_EQ(StatusOfAnswer(client.ReadAnswer()), 401);
  client.Send(Get("/echo"));
  EXPECT_EQ(StatusOfAnswer(client.ReadAnswer()), 200);
}

TEST_F(HttpServerTest, ARefusalIsReadAlthoughTheBodyIsStillSent) {
  Start();
  HttpClient client = Connect();
  client.Send("POST /forbidden HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n");
  client.Send(std::string(900'000, 'x'));
  EXPECT_EQ(StatusOfAnswer(client.ReadAll()), 401);
}

TEST_F(HttpServerTest, ClientsThatWereTimedOutDoNotKeepOthersOut) {
  Start({.max_connections = 10, .head_timeout = absl::Milliseconds(100), .linger = absl::Seconds(60)});
  std::vector<HttpClient> late;
  for (int i = 0; i < 10; ++i) {
    late.push_back(Connect());
    late.back().Send("GET / HTTP/1.1\r\n");
  }
  for (HttpClient& client : late) EXPECT_EQ(StatusOfAnswer(client.ReadAnswer()), 408);  // and they keep their sockets
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/echo"))), 200);
}

TEST_F(HttpServerTest, SlowBodiesDoNotKeepOthersOut) {
  Start({.max_connections = 10});
  std::vector<HttpClient> slow;
  for (int i = 0; i < 30; ++i) {
    slow.push_back(Connect());
    slow.back().Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  }
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/echo"))), 200);
}

TEST_F(HttpServerTest, RefusesABodyThatGrowsTooLarge) {
  Start({.max_body_bytes = 1000});
  std::string request = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 11; ++i) request += "64\r\n" + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(StatusOfAnswer(Ask(request)), 413);
}

TEST_F(HttpServerTest, RefusesAFloodOfHeaders) {
  Start();
  EXPECT_EQ(StatusOfAnswer(Ask("GET / HTTP/1.1\r\nX: " + std::string(100'000, 'y'))), 431);
  std::string many = "GET / HTTP/1.1\r\nHost: x\r\n";
  for (int i = 0; i < 500; ++i) many += "a: b\r\n";
  EXPECT_EQ(StatusOfAnswer(Ask(many + "\r\n")), 431);
}

TEST_F(HttpServerTest, RefusesPipelinedRequests) {
  Start();
  HttpClient client = Connect();
  client.Send(Post("/echo", "first") + Get("/echo"));
  const std::string all = client.ReadAll();
  EXPECT_EQ(StatusOfAnswer(all), 400);
  EXPECT_THAT(all, HasSubstr("pipelining"));
  EXPECT_EQ(all.find("HTTP/1.1", 1), std::string::npos) << "one answer, and the end";
}

TEST_F(HttpServerTest, ARequestBehindAnUnansweredOneIsDropped) {
  Start();
  HttpClient client = Connect();
  client.Send(Get("/held"));
  const std::shared_ptr<Exchange> held = service_.Held();
  ASSERT_NE(held, nullptr);
  client.Send(Get("/echo"));
  absl::SleepFor(absl::Milliseconds(50));
  held->Respond({.body = "first"});
  const std::string all = client.ReadAll();
  EXPECT_EQ(BodyOf(all), "first");
  EXPECT_THAT(all, HasSubstr("Connection: close"));
}

TEST_F(HttpServerTest, TimesOutSlowHeadsAndBodies) {
  Start({.head_timeout = absl::Milliseconds(200),
         .body_timeout = absl::Milliseconds(200),
         .idle_timeout = absl::Milliseconds(200)});
  HttpClient head = Connect(), body = Connect(), silent = Connect();
  head.Send("GET /echo HTTP/1.1\r\n");
  body.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(StatusOfAnswer(head.ReadAll()), 408);
  EXPECT_EQ(StatusOfAnswer(body.ReadAll()), 408);
  EXPECT_EQ(silent.ReadAll(), "");
}

TEST_F(HttpServerTest, ADripOfHeaderBytesDoesNotExtendTheTime) {
  Start({.head_timeout = absl::Milliseconds(300)});
  HttpClient client = Connect();
  client.Send("GET /echo HTTP/1.1\r\n");
  const Stopwatch begun;
  while (client.Send("X") && begun.Elapsed() < kPatience) {
    client.ReadUntil([](const std::string& read) { return !read.empty(); }, absl::Milliseconds(20));
    if (client.closed() || !client.ReadUntil([](const std::string&) { return true; }).empty()) break;
  }
  EXPECT_EQ(StatusOfAnswer(client.ReadAll()), 408);
}

TEST_F(HttpServerTest, HalfOpenConnectionsDoNotKeepOthersOut) {
  Start({.max_connections = 20});
  std::vector<HttpClient> half_open;
  for (int i = 0; i < 60; ++i) {
    half_open.push_back(Connect());
    ASSERT_TRUE(half_open.back().connected());
    half_open.back().Send("GET / HTTP/1.1\r\n");
  }
  const Stopwatch begun;
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/echo"))), 200);
  EXPECT_LT(begun.Elapsed(), absl::Seconds(5));
  EXPECT_LE(listener_->num_connections(), 20);
}

TEST_F(HttpServerTest, TurnsAwayWhoComesWhileAllAreBusy) {
  Start({.max_connections = 2});
  HttpClient first = Connect(), second = Connect();
  first.Send(Get("/held"));
  second.Send(Get("/held"));
  ASSERT_TRUE(Eventually([&] { return service_.Held() != nullptr && listener_->num_connections() == 2; }));
  absl::SleepFor(absl::Milliseconds(100));  // until both are held
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/echo"))), 503);
}

TEST_F(HttpServerTest, StreamsInChunksAndEnds) {
  Start();
  HttpClient client = Connect();
  client.Send(Get("/stream"));
  const std::string answer = client.ReadUntilHas("0\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Transfer-Encoding: chunked"));
  EXPECT_THAT(answer, HasSubstr("9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"));
}

TEST_F(HttpServerTest, StreamsToHttp10UntilItCloses) {
  Start();
  HttpClient client = Connect();
  client.Send("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_EQ(BodyOf(client.ReadAll()), "data: 1\n\ndata: 2\n\n");
  HttpClient slow = Connect();
  slow.Send("GET /quiet HTTP/1.0\r\n\r\n");
  const std::shared_ptr<Exchange> stream = service_.Held();
  ASSERT_NE(stream, nullptr);
  stream->Send("x");
  slow.ReadUntilHas("x");
  stream->End();  // behind a piece that has long been read
  EXPECT_EQ(BodyOf(slow.ReadAll()), "x");
}

TEST_F(HttpServerTest, AStreamMayStillBeRefusedBeforeItsFirstPiece) {
  Start();
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/refused-stream"))), 429);
}

TEST_F(HttpServerTest, AStreamThatFailsBehindAHeartbeatSaysSo) {
  Start({.heartbeat = absl::Milliseconds(20)});
  HttpClient client = Connect();
  client.Send(Get("/quiet"));
  const std::shared_ptr<Exchange> stream = service_.Held();
  ASSERT_NE(stream, nullptr);
  client.ReadUntilHas(": keep-alive");
  stream->Fail({.status = 503, .body = "never"}, SseEvent("failed"));
  const std::string answer = client.ReadUntilHas("0\r\n\r\n");
  EXPECT_EQ(StatusOfAnswer(answer), 200);
  EXPECT_THAT(answer, HasSubstr("data: failed"));
}

TEST_F(HttpServerTest, AQuietStreamHasHeartbeats) {
  Start({.heartbeat = absl::Milliseconds(50)});
  HttpClient client = Connect();
  client.Send(Get("/quiet"));
  client.ReadUntil([](const std::string& read) {
    const size_t first = read.find(": keep-alive");
    return first != std::string::npos && read.find(": keep-alive", first + 1) != std::string::npos;
  });
  EXPECT_FALSE(client.closed());
}

TEST_F(HttpServerTest, AClientThatLeavesIsToldToTheService) {
  Start();
  HttpClient client = Connect();
  client.Send(Get("/held"));
  ASSERT_NE(service_.Held(), nullptr);
  client.Close();
  EXPECT_TRUE(service_.SomebodyLeft());
}

TEST_F(HttpServerTest, AStreamThatIsNotReadIsCutOff) {
  Start({.max_unsent_bytes = 1 << 16});
  HttpClient client(listener_->port(), /*receive_buffer=*/4096);
  client.Send(Get("/quiet"));
  const std::shared_ptr<Exchange> stream = service_.Held();
  ASSERT_NE(stream, nullptr);
  std::thread writer([&] {
    for (int i = 0; i < 2000; ++i) stream->Send(std::string(10'000, 'x'));
  });
  EXPECT_TRUE(service_.SomebodyLeft());
  writer.join();
}

TEST_F(HttpServerTest, AStreamWhoseReaderStopsIsCutOffInTime) {
  Start({.write_timeout = absl::Milliseconds(300)});
  HttpClient client(listener_->port(), /*receive_buffer=*/4096);
  client.Send(Get("/quiet"));
  const std::shared_ptr<Exchange> stream = service_.Held();
  ASSERT_NE(stream, nullptr);
  stream->Send(std::string(3'900'000, 'x'));  // less than max_unsent_bytes, more than the sockets hold
  EXPECT_TRUE(service_.SomebodyLeft());
}

TEST_F(HttpServerTest, ADroppedExchangeIsAnsweredAsAnError) {
  Start();
  EXPECT_EQ(StatusOfAnswer(Ask(Get("/drop"))), 500);
}

TEST_F(HttpServerTest, DrainsWhatIsUnderWay) {
  Start();
  HttpClient busy = Connect(), idle = Connect();
  busy.Send(Get("/held"));
  const std::shared_ptr<Exchange> held = service_.Held();
  ASSERT_NE(held, nullptr);
  std::thread drain([&] { listener_->Drain(Deadline::In(kPatience)); });
  EXPECT_EQ(idle.ReadAll(), "");
  held->Respond({.body = "late"});
  EXPECT_EQ(BodyOf(busy.ReadAll()), "late");
  drain.join();
  EXPECT_FALSE(Connect().connected());
}

TEST_F(HttpServerTest, GarbageIsAnsweredOrClosedAndNobodyElseNotices) {
  Start();
  for (const std::string& garbage :
       {std::string("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 11), std::string(1000, '\0'), std::string("\r\n\r\n"),
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), std::string("GET / HTTP/0.9\r\n\r\n")}) {
    HttpClient client = Connect();
    client.Send(garbage);
    client.ReadUntil([](const std::string& read) { return !read.empty(); }, absl::Milliseconds(200));
    EXPECT_EQ(StatusOfAnswer(Ask(Get("/echo"))), 200);
  }
}

}  // namespace
}  // namespace ferry
