// What the gateway adds to a token: a scripted coordinator writes the time into each token, and a client compares it with the
// time at which it reads the token, over gRPC alone and over HTTP.
//
//   gateway_bench [--tokens N] [--streams N]     prints microseconds a token, p50 and p99

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
    return text.find("[DONE]") != std::string::npos;
  });
  return delays;
}

void Print(const char* what, std::vector<int64_t> delays) {
  std::sort(delays.begin(), delays.end());
  if (delays.empty()) return;
  std::printf("%-5s %zu tokens: p50 %lld us, p99 %lld us\n", what, delays.size(),
              static_cast<long long>(delays[delays.size() / 2]), static_cast<long long>(delays[delays.size() * 99 / 100]));
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
  CLI11_PARSE(app, argc, argv);
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
