// What a client that asks for much leaves to one that asks for little.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "cli/supervisor.h"
#include "common/access/api_keys.h"
#include "common/deadline.h"
#include "common/temporary_folder.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/hostile_client.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr int kGreedyRequests = 64, kParallel = 4;
constexpr int kRounds = 4, kPoliteRequests = 6;  // of each round, alone and beside the greedy ones

// Longer than the scheduler keeps the place of a client that is away, so that the greedy ones take it.
constexpr absl::Duration kAbsence = absl::Milliseconds(1500);

// A client with a key and a connection of its own.
class KeyedClient {
 public:
  KeyedClient(const std::string& address, std::string key)
      : stub_(proto::Ferry::NewStub(ChannelTo(address))), key_(std::move(key)) {}
  grpc::Status Ask() {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key_);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    proto::GenerateRequest request;
    const std::vector<uint32_t> prompt = SomePrompt(30);
    request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.set_max_tokens(20);
    request.set_ignore_eos(true);
    const auto stream = stub_->Generate(&context, request);
    proto::GenerateResponse response;
    while (stream->Read(&response)) {
      if (response.has_finish()) suspended_ += static_cast<int>(response.finish().suspended());
    }
    return stream->Finish();
  }

  int suspended() const { return suspended_; }  // how often its requests gave their place to another key's

 private:
  const std::unique_ptr<proto::Ferry::Stub> stub_;
  const std::string key_;
  std::atomic<int> suspended_{0};
};

// The 95th percentile.
template <typename T>
T P95(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() * 95 / 100];
}

// Requests that ask again and again while Ask is true.
class Crowd {
 public:
  Crowd(KeyedClient* client, int requests) {
    for (int i = 0; i < requests; ++i) {
      threads_.emplace_back([this, client] {
        while (!over_) {
          if (!asks_) {
            absl::SleepFor(absl::Milliseconds(5));
            continue;
          }
          ++running_;
          ends_ += client->Ask().ok();
          --running_;
        }
      });
    }
  }
  ~Crowd() {
    over_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  void Ask(bool asks) { asks_ = asks; }
  int running() const { return running_; }
  int ends() const { return ends_; }  // requests that were answered

 private:
  std::atomic<bool> asks_{false}, over_{false};
  std::atomic<int> running_{0}, ends_{0};
  std::vector<std::thread> threads_;
};

TEST(Fairness, APoliteClientDoesNotWaitForAGreedyOne) {
  ASSERT_OK_AND_ASSIGN(const auto folder, TemporaryFolder::CreateForSockets());
  ASSERT_OK_AND_ASSIGN(const NewApiKey polite_key, MakeApiKey("polite", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey greedy_key, MakeApiKey("greedy", Role::kUser));
  ModelOptions options = DemoModel(1);
  options.parallel = kParallel;
  options.api_keys = folder->File("keys");
  std::ofstream(options.api_keys) << polite_key.line << "\n" << greedy_key.line << "\n";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  KeyedClient polite(supervisor->address(), polite_key.key), greedy(supervisor->address(), greedy_key.key);
  ASSERT_TRUE(Eventually(absl::Seconds(60), [&] { return polite.Ask().ok(); }));

  Crowd crowd(&greedy, kGreedyRequests);
  std::vector<double> alone, beside;  // seconds of a polite request
  int ended = 0;                      // greedy requests, beside polite ones
  double seconds = 0;
  std::vector<int> ends;  // of greedy requests meanwhile
  const auto ask = [&](std::vector<double>* seconds) {
    const Stopwatch start;
    EXPECT_TRUE(polite.Ask().ok());
    seconds->push_back(absl::ToDoubleSeconds(start.Elapsed()));
  };
  // In turns, since what else the machine does changes both.
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kPoliteRequests; ++i) ask(&alone);
    crowd.Ask(true);
    const int first = crowd.ends();
    EXPECT_TRUE(Eventually(absl::Seconds(60), [&] { return crowd.ends() >= first + 2 * kParallel; }));
    absl::SleepFor(kAbsence);
    const Stopwatch both;
    const int ended_before = crowd.ends();
    for (int i = 0; i < kPoliteRequests; ++i) {
      const int before = crowd.ends();
      ask(&beside);
      ends.push_back(crowd.ends() - before);
    }
    seconds += both.Seconds();
    ended += crowd.ends() - ended_before;
    crowd.Ask(false);
    EXPECT_TRUE(Eventually(absl::Seconds(60), [&] { return crowd.running() == 0; }));
  }
  std::printf(
      "p95 of a polite request: %.0f ms alone, %.0f ms beside %d greedy ones, which is %.2f times as much; %d of these ended, "
      "both "
      "together %.1f a second\n",
      1e3 * P95(alone), 1e3 * P95(beside), kGreedyRequests, P95(beside) / P95(alone), P95(ends),
      (ended + static_cast<double>(beside.size())) / seconds);
  EXPECT_GT(greedy.suspended(), 0) << "they make room";
  EXPECT_EQ(polite.suspended(), 0);
  // What ends meanwhile is seen by a client whose threads wait for a core, so this bound is wide; BatchScheduler's tests have the
  // exact rule.
  EXPECT_LE(P95(ends), 8 * kParallel) << "in order of arrival there would be " << kGreedyRequests;
}

}  // namespace
}  // namespace ferry
