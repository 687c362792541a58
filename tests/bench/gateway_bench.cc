// What the gateway adds to a token: a scripted coordinator writes the time into each token, and a client compares it with the
// time at which it reads the token, over gRPC alone and over HTTP.
//
//   gateway_bench [--tokens N] [--streams N]     prints microseconds a token, p50 and p99
//
// Or how fast a real server decodes one stream over gRPC and over HTTP, in turns:
//
//   gateway_bench --server HOST:PORT --http-port PORT [--tokens N] [--rounds N]

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <thread>
#include <vector>

#include "gateway/engine_client.h"
#include "gateway/gateway.h"
#include "tests/gateway/fake_coordinator.h"
#include "tests/gateway/http_client.h"

namespace ferry {
namespace {

constexpr auto kPause = std::chrono::milliseconds(5);  // of a fast model's decode

int64_t NowMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

FakeCoordinator::Script TellsTheTime(int tokens) {
  return [tokens](const v1::GenerateRequest&, const auto& write) {
    for (int i = 0; i <= tokens; ++i) {
      v1::GenerateResponse message;
      message.add_token_ids(1);
      message.set_text(std::to_string(NowMicros()) + ";");
      if (i == tokens) message.mutable_finish()->set_reason(v1::Finish::LENGTH);
      write(message);
      std::this_thread::sleep_for(kPause);
    }
    return grpc::Status::OK;
  };
}

std::vector<int64_t> OverGrpc(const std::string& address) {
  const std::unique_ptr<EngineClient> client = *EngineClient::Create(address);
  const std::shared_ptr<Engine> engine = client->As("");
  std::vector<int64_t> delays;
  std::promise<void> end;
  engine->Generate(
      {}, [&](const v1::GenerateResponse& message) { delays.push_back(NowMicros() - std::stoll(message.text())); },
      [&](const absl::Status&) { end.set_value(); });
  end.get_future().wait();
  return delays;
}

std::vector<int64_t> OverHttp(int port) {
  HttpClient client(port);
  client.Send(Post("/v1/completions", R"({"prompt": "x", "stream": true})"));
  std::vector<int64_t> delays;
  const std::string name = "\"text\":\"";
  size_t read = 0;
  client.ReadUntil([&](const std::string& text) {
    const int64_t now = NowMicros();
    while (true) {
      const size_t at = text.find(name, read);
      if (at == std::string::npos || text.find(';', at) == std::string::npos) break;
      delays.push_back(now - std::stoll(text.substr(at + name.size(), 20)));
      read = at + name.size();
    }
    return text.find("[DONE]", read) != std::string::npos;
  });
  return delays;
}

void Print(const char* what, std::vector<int64_t> delays) {
  std::sort(delays.begin(), delays.end());
  if (delays.empty()) return;
  std::printf("%-5s %zu tokens: p50 %lld us, p99 %lld us\n", what, delays.size(),
              static_cast<long long>(delays[delays.size() / 2]), static_cast<long long>(delays[delays.size() * 99 / 100]));
}

// Of one stream, from its first text to its last.
class DecodeTime {
 public:
  void OnText() {
    last_ = NowMicros();
    if (first_ == 0) first_ = last_;
  }
  double TokensPerSecond(int tokens) const {
    return 1e6 * (tokens - 1) / static_cast<double>(std::max<int64_t>(1, last_ - first_));
  }

 private:
  int64_t first_ = 0, last_ = 0;
};

double DecodeOverGrpc(Engine& engine, int tokens) {
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_max_tokens(static_cast<uint32_t>(tokens));
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  DecodeTime time;
  std::promise<void> end;
  engine.Generate(
      request,
      [&](const v1::GenerateResponse& message) {
        if (!message.text().empty()) time.OnText();
      },
      [&](const absl::Status& status) {
        if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
        end.set_value();
      });
  end.get_future().wait();
  return time.TokensPerSecond(tokens);
}

double DecodeOverHttp(int port, int tokens) {
  HttpClient client(port);
  client.Send(Post("/v1/completions", R"({"prompt": "Once upon a time", "stream": true, "temperature": 0, "ignore_eos": true,
                                          "max_tokens": )" +
                                          std::to_string(tokens) + "}"));
  DecodeTime time;
  size_t read = 0;
  client.ReadUntil(
      [&](const std::string& text) {
        const std::string name = "\"text\":\"";
        for (size_t at = text.find(name, read); at != std::string::npos; at = text.find(name, read)) {
          time.OnText();
          read = at + name.size();
        }
        return text.find("[DONE]", read) != std::string::npos;
      },
      absl::Minutes(5));
  return time.TokensPerSecond(tokens);
}

int CompareDecode(const std::string& server, int http_port, int tokens, int rounds) {
  const auto client = EngineClient::Create(server);
  if (!client.ok()) {
    std::fprintf(stderr, "%s\n", client.status().ToString().c_str());
    return 1;
  }
  const std::shared_ptr<Engine> engine = (*client)->As("");
  std::vector<double> ratios;
  for (int round = 0; round < rounds; ++round) {
    const double grpc = DecodeOverGrpc(*engine, tokens), http = DecodeOverHttp(http_port, tokens);
    std::printf("gRPC %.1f, HTTP %.1f tokens a second: %.3f\n", grpc, http, http / grpc);
    ratios.push_back(http / grpc);
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf("HTTP decodes %.3f times as fast at the median of %d rounds\n", ratios[ratios.size() / 2], rounds);
  return 0;
}

template <typename Run>
std::vector<int64_t> Together(int streams, const Run& run) {
  std::vector<std::vector<int64_t>> each(static_cast<size_t>(streams));
  std::vector<std::thread> threads;
  for (auto& delays : each) threads.emplace_back([&] { delays = run(); });
  for (std::thread& thread : threads) thread.join();
  std::vector<int64_t> all;
  for (const auto& delays : each) all.insert(all.end(), delays.begin(), delays.end());
  return all;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  CLI::App app("what the gateway adds to a token");
  int tokens = 400, streams = 1;
  app.add_option("--tokens", tokens, "tokens of a stream")->capture_default_str();
  app.add_option("--streams", streams, "streams at once")->capture_default_str();
  std::string server;
  int http_port = 8080, rounds = 5;
  app.add_option("--server", server, "a server's gRPC address: compares decode instead");
  app.add_option("--http-port", http_port, "its HTTP port, on this machine")->capture_default_str();
  app.add_option("--rounds", rounds, "of the comparison")->capture_default_str()->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  if (!server.empty()) return ferry::CompareDecode(server, http_port, tokens, rounds);
  ferry::FakeCoordinator coordinator;
  coordinator.SetScript(ferry::TellsTheTime(tokens));
  const auto gateway = ferry::Gateway::Start({.listen = "127.0.0.1:0", .coordinator = coordinator.address()});
  if (!gateway.ok()) return 1;
  for (int round = 0; round < 3; ++round) {
    ferry::Print("gRPC", ferry::Together(streams, [&] { return ferry::OverGrpc(coordinator.address()); }));
    ferry::Print("HTTP", ferry::Together(streams, [&] { return ferry::OverHttp((*gateway)->port()); }));
  }
  return 0;
}
