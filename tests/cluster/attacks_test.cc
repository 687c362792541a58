// What clients can do to the API's port with messages, bytes and connections, while somebody else's requests go on.

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <random>
#include <thread>

#include "absl/time/clock.h"
#include "cli/supervisor.h"
#include "common/deadline.h"
#include "ferry/v1/vocabulary.pb.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/hostile_client.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr char kGenerate[] = "/ferry.v1.Ferry/Generate";
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kMaxAboveArena = 300 * kMiB;  // docs/operations.md
constexpr absl::Duration kAttackPatience = absl::Seconds(60);

class Attacks : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelOptions options = DemoModel(1);
    options.context = 16384;
    ASSERT_OK_AND_ASSIGN(supervisor_, Supervisor::Start(options));
    ASSERT_OK_AND_ASSIGN(client_, Client::Connect(address(), options));
    ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client_->ServerInfo());
    coordinator_ = info.pid();
    arena_bytes_ = static_cast<int64_t>(info.arena_bytes());
    victim_ = std::make_unique<Victim>(client_.get());
    ASSERT_OK(victim_->AskDuring([] {}));
  }

  const std::string& address() const { return supervisor_->address(); }
  int64_t Resident() const { return MemoryOf(coordinator_, "VmRSS"); }
  // The most that the coordinator has held beside the arena while `attack` ran.
  int64_t PeakDuring(const std::function<void()>& attack) const {
    std::ofstream("/proc/" + std::to_string(coordinator_) + "/clear_refs") << "5";  // the peak begins anew
    attack();
    return MemoryOf(coordinator_, "VmHWM") - arena_bytes_;
  }
  size_t Descriptors() const {
    const std::filesystem::directory_iterator folder("/proc/" + std::to_string(coordinator_) + "/fd");
    return static_cast<size_t>(std::distance(begin(folder), end(folder)));
  }
  bool IsIdle() const {
    const absl::StatusOr<proto::GetServerInfoResponse> info = client_->ServerInfo();
    return info.ok() && info->running_requests() == 0 && info->queued_requests() == 0 &&
           info->kv_blocks_free() == info->kv_blocks_total();
  }
  // A client that comes now, from this host's own address.
  bool ServesANewClient() const {
    const absl::StatusOr<std::unique_ptr<Client>> client = Client::Attach(address());
    return client.ok() && Greedy(**client, SomePrompt(5), 2).ok();
  }

  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<Client> client_;
  pid_t coordinator_ = 0;
  int64_t arena_bytes_ = 0;
  std::unique_ptr<Victim> victim_;
};

std::string Repeated(std::string_view unit, int64_t bytes) {
  std::string result;
  while (static_cast<int64_t>(result.size() + unit.size()) <= bytes) result += unit;
  return result;
}

// Field 1 of a message, of bytes.
std::string FirstField(std::string_view value) {
  std::string message = "\x0a";
  for (size_t rest = value.size();; rest >>= 7) {
    message += static_cast<char>(rest < 128 ? rest : (rest & 127) | 128);
    if (rest < 128) return message + std::string(value);
  }
}

TEST_F(Attacks, BytesThatAreNoMessageAreRefused) {
  std::mt19937 random(1);
  const auto below = [&](size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random); };
  proto::GenerateRequest sensible;
  sensible.mutable_tokens()->add_ids(5);
  sensible.set_max_tokens(2);
  sensible.add_stop("stop");
  constexpr std::array<const char*, 7> kMethods = {"Ferry/Generate",          "Ferry/Tokenize",
                                                   "Ferry/Detokenize",        "Ferry/Abort",
                                                   "Ferry/GetServerInfo",     "Vocabulary/TokenizePieces",
                                                   "Vocabulary/GetVocabulary"};
  const auto attack = [&] {
    const auto channel = ChannelTo(address());
    for (int i = 0; i < 600; ++i) {
      std::string bytes = sensible.SerializeAsString();
      if (i % 2 == 0) bytes.assign(std::array<size_t, 4>{1, 20, 100, 1000}[below(4)], '\0');
      for (size_t changes = i % 2 == 0 ? bytes.size() : 2; changes > 0; --changes) {
        bytes[below(bytes.size())] = static_cast<char>(below(256));
      }
      const std::string method = kMethods[below(kMethods.size())];
      const grpc::Status status = CallWithBytes(channel, "/ferry.v1." + method, bytes, absl::Seconds(1));
      using Code = grpc::StatusCode;
      const bool expected = status.ok() || status.error_code() == Code::INVALID_ARGUMENT ||
                            status.error_code() == Code::DEADLINE_EXCEEDED ||  // it has asked for many tokens
                            status.error_code() == Code::INTERNAL;             // gRPC's own parsing
      EXPECT_TRUE(expected) << method << ": " << status.error_code() << " " << status.error_message();
    }
  };
  EXPECT_OK(victim_->AskDuring(attack));
}

TEST_F(Attacks, SixBombsAtOnceHoldLittleMemoryAndGiveItBack) {
  struct Bomb {
    const char* what;
    std::string method, message;
    bool compressed = false;
  };
  const int64_t most = 4 * kMiB - 64;
  std::mt19937 random(2);
  std::string letters(most, ' ');
  for (char& letter : letters) letter = "abcdefghij "[std::uniform_int_distribution(0, 10)(random)];
  const std::vector<Bomb> bombs = {
      {"empty stop strings, compressed", kGenerate, Repeated(std::string_view("\x2a\0", 2), 16 * kMiB), true},
      {"empty stop strings", kGenerate, Repeated(std::string_view("\x2a\0", 2), most)},
      {"token ids", kGenerate, "\x12" + FirstField(FirstField(std::string(most, '\5'))).substr(1)},
      {"a long text", kGenerate, FirstField(letters)},
      {"ids", "/ferry.v1.Ferry/Detokenize", FirstField(std::string(most, '\x7f'))},
      {"a letter and a digit", "/ferry.v1.Ferry/Tokenize", FirstField(Repeated("a1", most))},
      {"empty ids of aborts", "/ferry.v1.Ferry/Abort", Repeated(std::string_view("\x0a\0", 2), most)},
      {"empty pieces", "/ferry.v1.Vocabulary/TokenizePieces", Repeated(std::string_view("\x0a\0", 2), most)},
      {"vocabularies", "/ferry.v1.Vocabulary/GetVocabulary", ""},
      {"unknown fields", "/ferry.v1.Ferry/GetServerInfo", Repeated(std::string_view("\xfa\x01\0", 3), most)},
      {"unknown fields of a reflection", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
       Repeated(std::string_view("\xfa\x01\0", 3), most)},
  };
  const int64_t before = Resident();
  const auto attack = [&] {
    for (const Bomb& bomb : bombs) {
      const auto drop = [&] {
        const grpc::Status status =
            CallWithBytes(ChannelTo(address()), bomb.method, bomb.message, kAttackPatience, bomb.compressed);
        EXPECT_NE(status.error_code(), grpc::StatusCode::UNAVAILABLE) << bomb.what << ": " << status.error_message();
      };
      const auto six = [&] {
        std::vector<std::future<void>> at_once;
        for (int i = 0; i < 6; ++i) at_once.push_back(std::async(std::launch::async, drop));
      };
      EXPECT_LE(PeakDuring(six), kMaxAboveArena) << bomb.what;
    }
  };
  EXPECT_OK(victim_->AskDuring(attack));
  EXPECT_TRUE(Eventually(absl::Seconds(30), [&] { return Resident() <= before * 6 / 5; }))
      << before / kMiB << " MiB before, " << Resident() / kMiB << " MiB after";
}

TEST_F(Attacks, UnfinishedMessagesHoldLittleMemory) {
  const int64_t before = Resident();
  std::atomic<int64_t> sent = 0;
  int64_t peak = 0;
  const auto attack = [&] {
    peak = PeakDuring([&] {
      std::vector<std::thread> connections;
      for (const std::string method :
           {kGenerate, "/ferry.v1.Ferry/Tokenize", "/ferry.v1.Vocabulary/TokenizePieces", "/vllm.grpc.engine.VllmEngine/Generate",
            "/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}) {
        connections.emplace_back([this, &sent, method] {
          HostileConnection connection(address(), "127.0.0.2");
          sent += connection.SendUnfinished(128, method, 4 * kMiB - 64, absl::Seconds(3));
        });
      }
      EXPECT_TRUE(ServesANewClient());
      for (std::thread& connection : connections) connection.join();
    });
    EXPECT_TRUE(ServesANewClient());
  };
  EXPECT_OK(victim_->AskDuring(attack));
  std::printf("%d MiB of unfinished messages were taken; the coordinator held %d MiB beside the arena at most\n",
              static_cast<int>(sent / kMiB), static_cast<int>(peak / kMiB));
  EXPECT_GT(sent.load(), kMiB) << "it is told how much it may send";
  EXPECT_LE(peak, kMaxAboveArena);
  EXPECT_TRUE(Eventually(absl::Seconds(30), [&] { return Resident() <= before * 6 / 5; }))
      << before / kMiB << " MiB before, " << Resident() / kMiB << " MiB after";
}

TEST_F(Attacks, TextsThatWaitHoldLittleAndCanBeCancelled) {
  const std::string message = FirstField(Repeated("abcdefghij", 4 * kMiB - 64));
  const auto attack = [&] {
    std::vector<std::future<void>> calls;
    for (int i = 0; i < 100; ++i) {
      calls.push_back(std::async(std::launch::async, [&] {
        CallWithBytes(ChannelTo(address()), "/ferry.v1.Ferry/Tokenize", message, absl::Milliseconds(500));
      }));
    }
  };
  EXPECT_OK(victim_->AskDuring([&] { EXPECT_LE(PeakDuring(attack), kMaxAboveArena); }));
}

TEST_F(Attacks, FloodsOfFramesHoldLittleMemory) {
  const std::string headers = CallHeaders(1, kGenerate);
  proto::GenerateRequest request;
  request.mutable_tokens()->add_ids(5);
  request.set_max_tokens(4000);
  const std::string message = request.SerializeAsString();
  const std::string cancel = {0, 0, 0, 8};
  struct Flood {
    const char* what;
    int frames;
    std::function<std::string(uint32_t)> frame;  // number i
  };
  const std::vector<Flood> floods = {
      {"pings", 20000, [](uint32_t) { return Http2Frame(FrameType::kPing, 0, 0, "12345678"); }},
      {"settings", 20000, [](uint32_t) { return Http2Frame(FrameType::kSettings, 0, 0, ""); }},
      {"headers without an end", 5000,
       [](uint32_t i) {
         return i == 0 ? Http2Frame(FrameType::kHeaders, 0, 1, std::string("\0\1a\1b", 5))
                       : Http2Frame(FrameType::kContinuation, 0, 1, std::string("\0\1a\x7f\x80\1", 6) + std::string(255, 'b'));
       }},
      {"calls that are taken back", 5000,
       [&](uint32_t i) {
         return CallHeaders(2 * i + 1, kGenerate) + CallMessage(2 * i + 1, message) +
                Http2Frame(FrameType::kResetStream, 0, 2 * i + 1, cancel);
       }},
      {"calls without a message", 20000, [](uint32_t i) { return CallHeaders(2 * i + 1, kGenerate); }},
  };
  const auto attack = [&] {
    for (const Flood& flood : floods) {
      HostileConnection connection(address());
      ASSERT_TRUE(connection.Send(Http2Opening()));
      const int64_t peak = PeakDuring([&] {
        for (int i = 0; i < flood.frames && connection.Send(flood.frame(static_cast<uint32_t>(i))); ++i) {
        }
      });
      EXPECT_LE(peak, kMaxAboveArena) << flood.what;
    }
  };
  EXPECT_OK(victim_->AskDuring(attack));
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return IsIdle(); }));
}

TEST_F(Attacks, TwentyThousandOpenCallsHoldLittleMemory) {
  const auto attack = [&] {
    std::vector<HostileConnection> connections;
    for (int i = 0; i < 160; ++i) {
      connections.emplace_back(address(), "127.0.0.2");
      std::string calls = Http2Opening();
      for (uint32_t call = 0; call < 128; ++call) calls += CallHeaders(2 * call + 1, kGenerate);
      connections.back().Send(calls);
    }
    absl::SleepFor(absl::Seconds(1));  // they stay open
  };
  EXPECT_OK(victim_->AskDuring([&] { EXPECT_LE(PeakDuring(attack), kMaxAboveArena); }));
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return ServesANewClient(); }));
}

TEST_F(Attacks, ManyConnectionsOfOneAddressKeepNobodyElseOut) {
  const size_t before = Descriptors();
  const auto attack = [&] {
    std::vector<HostileConnection> idle;
    for (int i = 0; i < 2000; ++i) {
      idle.emplace_back(address(), "127.0.0.2");
      if (i % 2 == 0) idle.back().Send(Http2Opening());
    }
    EXPECT_TRUE(ServesANewClient());
    EXPECT_LE(Descriptors(), before + 2 * 1024 + 64) << "one address has 1024 connections";
    std::mt19937 random(3);
    for (int i = 0; i < 200; ++i) {
      std::string noise(std::array<size_t, 3>{1, 24, 1000}[i % 3], '\0');
      for (char& byte : noise) byte = static_cast<char>(random());
      HostileConnection(address(), "127.0.0.3").Send((i % 2 == 0 ? Http2Opening() : "") + noise);
    }
  };
  EXPECT_OK(victim_->AskDuring(attack));
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return ServesANewClient(); }));
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return Descriptors() <= before + 8; })) << Descriptors() << " after " << before;
}

TEST_F(Attacks, TheListenerIsAliveAfterDescriptorsRanOut) {
  const rlim_t limit = Descriptors() + 100;
  const rlimit few = {.rlim_cur = limit, .rlim_max = limit};
  ASSERT_EQ(::prlimit(coordinator_, RLIMIT_NOFILE, &few, nullptr), 0);
  std::vector<HostileConnection> idle;
  EXPECT_OK(victim_->AskDuring([&] {
    for (int i = 0; i < 200; ++i) idle.emplace_back(address());
    EXPECT_TRUE(Eventually(kAttackPatience, [&] { return Descriptors() >= limit - 4; })) << Descriptors() << " of " << limit;
    HostileConnection another(address());
    EXPECT_TRUE(another.IsClosedWithin(kAttackPatience)) << "who comes now is turned away";
  }));
  idle.clear();
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return ServesANewClient(); }));
}

TEST_F(Attacks, ClientsThatVanishFreeTheirPlaces) {
  proto::GenerateRequest decode, prefill;
  decode.mutable_tokens()->add_ids(5);
  decode.set_max_tokens(2000);
  decode.set_ignore_eos(true);
  const std::vector<uint32_t> prompt = SomePrompt(3000);
  prefill.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  prefill.set_max_tokens(2);
  std::mt19937 random(4);
  const auto attack = [&] {
    // Four run and the others wait: clients leave from the queue, from prefill and from decode.
    for (int round = 0; round < 6; ++round) {
      std::vector<HostileConnection> clients;
      for (int i = 0; i < 12; ++i) {
        clients.emplace_back(address());
        const proto::GenerateRequest& request = round % 2 == 0 ? decode : prefill;
        clients.back().Send(Http2Opening() + CallHeaders(1, kGenerate) + CallMessage(1, request.SerializeAsString()));
      }
      absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution(0, 200)(random)));
      for (HostileConnection& client : clients) random() % 2 == 0 ? client.Reset() : client.Close();
    }
  };
  EXPECT_OK(victim_->AskDuring(attack));
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return IsIdle(); }));
}

TEST_F(Attacks, ClientsThatDoNotReadHoldLittleMemory) {
  proto::GenerateRequest request;
  const std::vector<uint32_t> prompt = SomePrompt(1000);
  request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.set_max_tokens(2);
  request.set_prompt_logprobs(20);
  std::vector<HostileConnection> clients;
  const auto attack = [&] {
    for (int i = 0; i < 8; ++i) {
      clients.emplace_back(address());
      clients.back().Send(Http2Opening(/*window=*/0) + CallHeaders(1, kGenerate) + CallMessage(1, request.SerializeAsString()));
    }
    EXPECT_TRUE(Eventually(kAttackPatience, [&] { return client_->ServerInfo()->queued_requests() == 0; }));
  };
  EXPECT_OK(victim_->AskDuring([&] { EXPECT_LE(PeakDuring(attack), kMaxAboveArena); }));
  clients.clear();
  EXPECT_TRUE(Eventually(kAttackPatience, [&] { return IsIdle(); }));
}

}  // namespace
}  // namespace ferry
