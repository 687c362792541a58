// What happens to requests, to the service and to the machine when a process falls over.

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "cli/supervisor.h"
#include "common/deadline.h"
#include "kernels/ops.h"
#include "tests/cluster/cluster.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr double kResumePatience = 300;  // seconds: a busy machine takes its time to start a worker

// Runs a long generation beside the test.
std::future<absl::Status> InTheBackground(Client& client, std::vector<uint32_t> prompt, uint32_t tokens) {
  return std::async(std::launch::async,
                    [&client, prompt = std::move(prompt), tokens] { return Greedy(client, prompt, tokens).status(); });
}

absl::StatusOr<proto::GetServerInfoResponse> WhenBusy(Client& client) {
  absl::StatusOr<proto::GetServerInfoResponse> info = Internal("no request runs");
  Eventually(absl::Seconds(10), [&] {
    info = client.ServerInfo();
    return info.ok() && info->running_requests() > 0;
  });
  return info;
}

void ExpectServedAgainWithin(Client& client, absl::Duration timeout) {
  EXPECT_TRUE(Eventually(timeout, [&] { return Greedy(client, SomePrompt(10), 3).ok(); }));
}

TEST(Faults, WithoutResumeAKilledWorkerEndsItsRequests) {
  // The slow kernels and small steps make a prefill that lasts long enough to be hit.
  ModelOptions options = DemoModel(2);
  options.backend = "reference";
  options.batch = 64;
  options.resume = "off";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  // In decode, then in prefill: of the last worker, then of the first.
  for (const bool in_prefill : {false, true}) {
    SCOPED_TRACE(in_prefill ? "in prefill" : "in decode");
    std::future<absl::Status> request =
        in_prefill ? InTheBackground(*client, SomePrompt(4000), 1) : InTheBackground(*client, SomePrompt(10), 100000);
    ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, WhenBusy(*client));
    absl::SleepFor(absl::Milliseconds(300));
    const Stopwatch killed;
    ASSERT_EQ(kill(info.workers(in_prefill ? 0 : 1).pid(), SIGKILL), 0);
    ASSERT_EQ(request.wait_for(std::chrono::seconds(2)), std::future_status::ready);
    EXPECT_THAT(request.get(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker")));
    ExpectServedAgainWithin(*client, absl::Seconds(10) - (killed.Elapsed()));
  }
}

// A worker that hangs is no end of a connection: the coordinator declares it lost, and the supervisor ends it.
TEST(Faults, AStoppedWorkerIsReplacedAndItsStreamsGoOn) {
  ModelOptions options = DemoModel(2);
  options.resume_patience = kResumePatience;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect(supervisor->address(), options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> impatient, Client::Connect(supervisor->address(), options));
  ASSERT_OK_AND_ASSIGN(const Completion alone, Greedy(*client, SomePrompt(10), 1500));
  std::future<absl::StatusOr<Completion>> request =
      std::async(std::launch::async, [&] { return Greedy(*client, SomePrompt(10), 1500); });
  std::future<absl::Status> ends = std::async(std::launch::async, [&] {
    proto::GenerateRequest request;
    request.mutable_tokens()->add_ids(5);
    request.set_ignore_eos(true);
    request.set_resume(false);
    return impatient->Generate(request, [](const proto::GenerateResponse&) { return true; }).status();
  });
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> observer, Client::Connect(supervisor->address(), options));
  ASSERT_TRUE(Eventually(absl::Seconds(10), [&] {
    const absl::StatusOr<proto::GetServerInfoResponse> info = observer->ServerInfo();
    return info.ok() && info->running_requests() == 2;
  }));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, observer->ServerInfo());
  const pid_t stopped = info.workers(0).pid();
  ASSERT_EQ(kill(stopped, SIGSTOP), 0);
  if (ends.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
    kill(stopped, SIGKILL);  // so that the futures below end
    ADD_FAILURE() << "a stopped worker holds a request for 60 s, beyond the heartbeat timeout of 10 s";
  }
  EXPECT_THAT(ends.get(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("worker 0")));
  ASSERT_OK_AND_ASSIGN(const Completion completion, request.get());
  EXPECT_TRUE(completion == alone);
  EXPECT_EQ(completion.finish.resumed(), 1u);
  EXPECT_FALSE(Alive(stopped));
}

// A request that tests repeat: what it generates depends on nothing else.
struct Ask {
  std::vector<uint32_t> prompt;
  uint32_t tokens = 0;
  uint64_t seed = 0;
};
absl::StatusOr<Completion> AnswerTo(Client& client, const Ask& ask, bool forget_experts = false) {
  proto::GenerateRequest request;
  request.set_forget_experts(forget_experts);
  request.mutable_tokens()->mutable_ids()->Add(ask.prompt.begin(), ask.prompt.end());
  request.set_max_tokens(ask.tokens);
  request.set_ignore_eos(true);
  request.set_logprobs(0);
  request.mutable_sampling()->set_seed(ask.seed);
  request.mutable_sampling()->set_frequency_penalty(0.3f);
  Completion completion;
  ASSIGN_OR_RETURN(completion.finish, client.Generate(request, [&](const proto::GenerateResponse& response) {
    completion.ids.insert(completion.ids.end(), response.token_ids().begin(), response.token_ids().end());
    completion.text += response.text();
    for (const proto::PositionLogprobs& position : response.logprobs()) completion.logprobs.push_back(position.logprob());
    return true;
  }));
  return completion;
}

// Long prompts and short answers, short prompts and long answers.
std::vector<Ask> Asks() {
  std::vector<Ask> asks;
  for (uint32_t i = 0; i < 6; ++i) {
    std::vector<uint32_t> prompt = SomePrompt(i % 2 == 0 ? 900 + 100 * i : 5 + i);
    prompt[0] = 100 + i;  // none begins like another
    asks.push_back({.prompt = std::move(prompt), .tokens = i % 2 == 0 ? 20u : 150u, .seed = i});
  }
  return asks;
}

// What each ask gives when nothing fails: the same in every cluster of processors.
const std::vector<Completion>& AnswersAlone() {
  static auto* const answers = new std::vector<Completion>();
  if (answers->empty()) {
    const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("", DemoModel(1));
    for (const Ask& ask : Asks()) answers->push_back(AnswerTo(**client, ask).value());
  }
  return *answers;
}

// The model's own log-probabilities of what it wrote: a GPU multiplies few rows and many by different kernels, so there an
// answer's last digits depend on the rows beside it and on where it went on, and a near tie may go the other way. A token lost or
// a row computed from another's cache would be wrong by far more.
void ExpectTheModelsWords(Client& client, const Ask& ask, const Completion& answer) {
  ASSERT_EQ(answer.ids.size(), ask.tokens);
  ASSERT_EQ(answer.logprobs.size(), answer.ids.size());
  std::vector<uint32_t> ids = ask.prompt;
  ids.insert(ids.end(), answer.ids.begin(), answer.ids.end());
  ASSERT_OK_AND_ASSIGN(const Completion scored, Greedy(client, ids, 0, /*prompt_logprobs=*/true));
  ASSERT_EQ(scored.prompt_logprobs.size(), ids.size() - 1);
  double squares = 0, largest = 0;
  for (size_t i = 0; i < answer.ids.size(); ++i) {
    const double off = std::abs(answer.logprobs[i] - scored.prompt_logprobs[ask.prompt.size() - 1 + i]);
    squares += off * off;
    largest = std::max(largest, off);
  }
  EXPECT_LE(std::sqrt(squares / static_cast<double>(answer.ids.size())), 0.05);
  EXPECT_LE(largest, 0.5);
}

struct Killing {
  const char* name;
  int workers;
  const char* transport;
  bool ends_with_a_stop = false;  // SIGSTOP, which nobody notices for 10 s
  bool in_long_runs_alone = false;
  const char* hidden_states = "auto";  // --transport; "nccl": on GPUs
  bool help = false;                   // on GPUs, whose workers compute experts for each other
};
void PrintTo(const Killing& killing, std::ostream* out) { *out << killing.name; }
class KilledWorkers : public ::testing::TestWithParam<Killing> {};

// FERRY_TEST_STREAMS=200 makes a long test of this one: workers are killed until so many streams have ended, with a SIGSTOP for
// every ten SIGKILL. FERRY_TEST_SEED moves the times.
int NumberFrom(const char* variable, int otherwise) {
  const char* const value = std::getenv(variable);
  return value == nullptr ? otherwise : std::atoi(value);
}

TEST_P(KilledWorkers, NoStreamSeesAnErrorOrAnotherToken) {
  const int wanted_streams = NumberFrom("FERRY_TEST_STREAMS", 0);
  if (GetParam().in_long_runs_alone && wanted_streams == 0) GTEST_SKIP() << "FERRY_TEST_STREAMS=200 runs it";
  ModelOptions options = DemoModel(GetParam().workers);
  options.expert_transport = GetParam().transport;
  options.transport = GetParam().hidden_states;
  options.parallel = 4;
  options.resume_patience = kResumePatience;
  const bool help = GetParam().help;
  if (options.transport == "nccl" || help) {
    if (NumCudaDevices() < options.workers) GTEST_SKIP() << "workers on GPUs of their own need " << options.workers << " GPUs";
    options.backend = "cuda";
    // A GPU's products and the host's round differently, and which of them computes depends on what the slots hold: all on GPUs.
    options.layers = "0-2,3-5";
    options.overrides = {R"(blk\.[0-2]\..*exps=gpu0)", R"(blk\.[3-5]\..*exps=gpu1)"};
  }
  if (help) options.share_links = "even";
  const std::vector<Ask> asks = Asks();
  const bool on_gpus = options.backend == "cuda";
  const std::vector<Completion> alone = on_gpus ? std::vector<Completion>() : AnswersAlone();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> observer, Client::Connect(supervisor->address(), options));
  std::atomic<bool> killing{true};
  std::atomic<int> ended{0};
  std::mutex mutex;
  std::vector<std::pair<size_t, Completion>> from_gpus;  // by ask
  std::vector<std::thread> streams;
  for (size_t first = 0; first < asks.size(); ++first) {
    streams.emplace_back([&, first] {
      const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(supervisor->address(), options);
      ASSERT_OK(client.status());
      for (size_t i = first; killing; i = (i + 1) % asks.size()) {
        const absl::StatusOr<Completion> completion = AnswerTo(**client, asks[i], help);
        ASSERT_OK(completion.status()) << "ask " << i;
        if (on_gpus) {
          const std::lock_guard lock(mutex);
          from_gpus.emplace_back(i, *completion);
        } else {
          EXPECT_EQ(completion->ids, alone[i].ids) << "ask " << i << ", resumed " << completion->finish.resumed();
          EXPECT_EQ(completion->text, alone[i].text) << "ask " << i;
          EXPECT_EQ(completion->logprobs, alone[i].logprobs) << "ask " << i;
        }
        ++ended;
      }
    });
  }
  const int seed = NumberFrom("FERRY_TEST_SEED", GetParam().workers), kills = 3;
  SCOPED_TRACE("FERRY_TEST_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  // A worker that is killed at once is started again later and later: in a long run streams have to end between two kills.
  const int longest_pause = wanted_streams > 0 ? 25000 : 900;  // milliseconds
  std::map<bool, std::vector<absl::Duration>> pauses;          // until the cluster served again: after SIGSTOP, after SIGKILL
  for (int i = 1; (i <= kills || ended < wanted_streams) && !::testing::Test::HasFailure(); ++i) {
    const bool stops = i % 11 == 0 || (GetParam().ends_with_a_stop && i == kills);
    absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution(100, longest_pause)(random)));
    const absl::StatusOr<proto::GetServerInfoResponse> info = observer->ServerInfo();
    EXPECT_OK(info.status());
    if (!info.ok()) break;
    const int worker = std::uniform_int_distribution(0, GetParam().workers - 1)(random);
    const Stopwatch lost;
    kill(info->workers(worker).pid(), stops ? SIGSTOP : SIGKILL);
    EXPECT_TRUE(Eventually(absl::Seconds(60), [&] {
      const absl::StatusOr<proto::GetServerInfoResponse> now = observer->ServerInfo();
      return now.ok() && now->state() == "serving" && now->workers(worker).pid() != info->workers(worker).pid();
    }));
    pauses[stops].push_back(lost.Elapsed());
  }
  killing = false;
  for (std::thread& stream : streams) stream.join();
  for (const auto& [ask, answer] : from_gpus) {
    SCOPED_TRACE("ask " + std::to_string(ask) + ", resumed " + std::to_string(answer.finish.resumed()));
    ExpectTheModelsWords(*observer, asks[ask], answer);
  }
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, observer->ServerInfo());
  EXPECT_GT(info.resumed_requests_total(), 0u);
  std::printf("%d streams ended, resumed %d times\n", ended.load(), static_cast<int>(info.resumed_requests_total()));
  for (auto& [stops, durations] : pauses) {
    std::sort(durations.begin(), durations.end());
    std::printf("%d workers were %s: served again after %s (median), %s (longest)\n", static_cast<int>(durations.size()),
                stops ? "stopped" : "killed", absl::FormatDuration(durations[durations.size() / 2]).c_str(),
                absl::FormatDuration(durations.back()).c_str());
  }
}
INSTANTIATE_TEST_SUITE_P(Faults, KilledWorkers,
                         ::testing::Values(Killing{"OneOverSharedMemory", 1, "shm"}, Killing{"TwoOverGrpc", 2, "grpc", true},
                                           Killing{"TwoOverTcp", 2, "tcp"}, Killing{"ThreeOverSharedMemory", 3, "shm"},
                                           Killing{"OneOverGrpc", 1, "grpc", true, true},
                                           Killing{"TwoOverSharedMemory", 2, "shm", true, true},
                                           Killing{"ThreeOverGrpc", 3, "grpc", true, true},
                                           Killing{"TwoOverNccl", 2, "shm", false, false, "nccl"},
                                           Killing{"TwoGpusThatHelp", 2, "shm", true, false, "auto", true}),
                         [](const auto& info) { return info.param.name; });

TEST(Faults, AKilledCoordinatorLeavesNothingBehind) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(DemoModel(2)));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect(supervisor->address(), DemoModel(2)));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client->ServerInfo());
  std::set<std::string> shm_before;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) shm_before.insert(entry.path());
  ASSERT_EQ(kill(info.pid(), SIGKILL), 0);
  for (const proto::WorkerInfo& worker : info.workers()) {
    EXPECT_TRUE(Eventually(absl::Seconds(10), [&] { return !Alive(worker.pid()); })) << "worker " << worker.worker_id();
  }
  EXPECT_THAT(supervisor->Health(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("killed by signal 9")));
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    EXPECT_TRUE(shm_before.contains(entry.path())) << entry.path();
  }
}

TEST(Faults, AKilledCoordinatorEndsItsClientsAndANewStartServes) {
  ModelOptions options = DemoModel(2);
  options.parallel = 3;
  std::unique_ptr<Supervisor> supervisor;
  ASSERT_OK_AND_ASSIGN(supervisor, Supervisor::Start(options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> observer, Client::Connect(supervisor->address(), options));
  ASSERT_OK_AND_ASSIGN(const Completion before, Greedy(*observer, SomePrompt(30), 12));
  std::vector<std::unique_ptr<Client>> clients;  // three run and three wait
  std::vector<std::future<absl::Status>> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    ASSERT_OK_AND_ASSIGN(clients.emplace_back(), Client::Connect(supervisor->address(), options));
    requests.push_back(InTheBackground(*clients.back(), SomePrompt(i % 2 == 0 ? 10 : 2000), 100000));
  }
  absl::StatusOr<proto::GetServerInfoResponse> info;
  EXPECT_TRUE(Eventually(absl::Seconds(60), [&] {
    info = observer->ServerInfo();
    return info.ok() && info->running_requests() == 3 && info->queued_requests() == 3;
  }));
  ASSERT_OK(info.status());
  const Stopwatch killed;
  ASSERT_EQ(kill(info->pid(), SIGKILL), 0);
  for (std::future<absl::Status>& request : requests) EXPECT_THAT(request.get(), StatusIs(absl::StatusCode::kUnavailable));
  // 2 s on a machine of its own; here the clients' threads may wait for a core.
  EXPECT_LT(killed.Elapsed(), absl::Seconds(10));
  supervisor.reset();
  ASSERT_OK_AND_ASSIGN(supervisor, Supervisor::Start(options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> again, Client::Connect(supervisor->address(), options));
  ASSERT_OK_AND_ASSIGN(const Completion after, Greedy(*again, SomePrompt(30), 12));
  EXPECT_TRUE(before == after);
}

TEST(Faults, ACancelledRequestFreesItsBlocks) {
  ModelOptions options = DemoModel(2);
  options.context = 4096;
  options.parallel = 1;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  std::future<absl::Status> request = InTheBackground(*client, SomePrompt(100), 100000);
  ASSERT_OK(WhenBusy(*client));
  client->Cancel();
  EXPECT_THAT(request.get(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(Eventually(absl::Seconds(2), [&] {
    const absl::StatusOr<proto::GetServerInfoResponse> info = client->ServerInfo();
    return info.ok() && info->running_requests() == 0 && info->queued_requests() == 0;
  }));
  EXPECT_OK(Greedy(*client, SomePrompt(4000), 10).status());  // the whole cache is there again
}

TEST(Faults, BadRequestsAreRefusedByName) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", DemoModel(1)));
  const auto refused = [&](const std::function<void(proto::GenerateRequest&)>& change, const char* field) {
    proto::GenerateRequest request;
    request.mutable_tokens()->add_ids(5);
    change(request);
    EXPECT_THAT(client->Generate(request, [](const proto::GenerateResponse&) { return true; }),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  refused([](auto& r) { r.mutable_tokens()->add_ids(4096); }, "4096");
  refused([](auto& r) { r.clear_prompt(); }, "prompt");
  refused([](auto& r) { r.mutable_tokens()->clear_ids(); }, "token");
  refused([](auto& r) { r.mutable_sampling()->set_temperature(-1); }, "temperature");
  refused([](auto& r) { r.mutable_sampling()->set_top_p(NAN); }, "top_p");
  refused([](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[9999] = 1; }, "logit_bias");
  refused([](auto& r) { r.add_stop_token_ids(100000); }, "stop_token_ids");
  refused([](auto& r) { r.set_logprobs(21); }, "logprobs");
  refused(
      [](auto& r) {
        for (int i = 0; i < 200000; ++i) r.mutable_tokens()->add_ids(5);
      },
      "context");
  EXPECT_OK(Greedy(*client, SomePrompt(10), 3).status());
}

// Inodes of the sockets a process has open, and the local addresses that listen: /proc/net/tcp and tcp6.
TEST(Faults, EverythingListensOnLoopback) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", DemoModel(2)));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client->ServerInfo());
  std::set<std::string> inodes;
  std::vector<int> pids = {info.pid()};
  for (const proto::WorkerInfo& worker : info.workers()) pids.push_back(worker.pid());
  for (const int pid : pids) {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
      std::error_code error;
      const std::string target = std::filesystem::read_symlink(entry.path(), error);
      if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
    }
  }
  int listening = 0;
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);
    while (std::getline(file, line)) {
      std::istringstream fields(line);
      std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
      fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
      if (state != "0A" || !inodes.contains(inode)) continue;
      ++listening;
      const std::string address = local.substr(0, local.find(':'));
      const bool loopback =
          address == "0100007F" || address == "00000000000000000000000001000000" || address == "0000000000000000FFFF00000100007F";
      EXPECT_TRUE(loopback) << table << " " << local;
    }
  }
  EXPECT_EQ(listening, 1) << "the API; the cluster's own calls need no port";
}

TEST(Faults, ProcessesHoldWhatTheySayAndLittleMore) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", DemoModel(2)));
  ASSERT_OK(Greedy(*client, SomePrompt(600), 20).status());
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client->ServerInfo());
  EXPECT_LE(info.resident_bytes(), info.arena_bytes() + (300u << 20));
  for (const proto::WorkerInfo& worker : info.workers()) {
    EXPECT_LE(worker.resident_bytes(), worker.dense_bytes() + worker.kv_bytes() + worker.expert_slot_bytes() + (200u << 20));
  }
}

}  // namespace
}  // namespace ferry
