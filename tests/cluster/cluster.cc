#include "tests/cluster/cluster.h"

#include <signal.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/own_cache.h"
#include "tests/testing/source_path.h"

namespace ferry {
namespace {

nlohmann::json Golden() {
  std::ifstream file(SourcePath("tests/cluster/testdata/golden.json"));
  return nlohmann::json::parse(file).at("cases");
}

}  // namespace

std::string Programs() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

ModelOptions DemoModel(int workers) {
  static const OwnCache cache;  // rates are measured by the first start of a test program
  ModelOptions options;
  options.model = kDemoModel;
  options.workers = workers;
  options.backend = "cpu";
  return options;
}

absl::StatusOr<Completion> Greedy(Client& client, const std::vector<uint32_t>& prompt, uint32_t max_tokens,
                                  bool prompt_logprobs) {
  proto::GenerateRequest request;
  request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  request.set_logprobs(0);
  if (prompt_logprobs) request.set_prompt_logprobs(1);
  request.mutable_sampling()->set_temperature(0);
  Completion completion;
  ASSIGN_OR_RETURN(completion.finish, client.Generate(request, [&](const proto::GenerateResponse& response) {
    completion.ids.insert(completion.ids.end(), response.token_ids().begin(), response.token_ids().end());
    completion.text += response.text();
    for (const proto::PositionLogprobs& position : response.logprobs()) completion.logprobs.push_back(position.logprob());
    for (const proto::PositionLogprobs& position : response.prompt_logprobs()) {
      completion.prompt_logprobs.push_back(position.logprob());
      completion.best.push_back(position.top_size() > 0 ? position.top(0).id() : UINT32_MAX);
    }
    return true;
  }));
  return completion;
}

std::vector<uint32_t> SomePrompt(size_t tokens) {
  std::vector<uint32_t> ids;
  for (const GoldenPassage& passage : GoldenPassages()) ids.insert(ids.end(), passage.ids.begin(), passage.ids.end());
  while (ids.size() < tokens) ids.insert(ids.end(), ids.begin(), ids.begin() + std::min(ids.size(), tokens - ids.size()));
  ids.resize(tokens);
  return ids;
}

std::vector<GoldenContinuation> GoldenContinuations() {
  std::vector<GoldenContinuation> result;
  for (const nlohmann::json& entry : Golden()) {
    if (!entry.contains("greedy_ids")) continue;
    result.push_back({.prompt = entry.at("ids"), .greedy = entry.at("greedy_ids"), .margin = entry.at("greedy_margin")});
  }
  return result;
}

std::vector<GoldenPassage> GoldenPassages() {
  std::vector<GoldenPassage> result;
  for (const nlohmann::json& entry : Golden()) {
    if (!entry.contains("perplexity")) continue;
    GoldenPassage passage{.ids = entry.at("ids"), .logprobs = entry.at("logprob"), .perplexity = entry.at("perplexity")};
    for (const nlohmann::json& top : entry.at("top5_ids")) passage.best.push_back(top.at(0));
    result.push_back(std::move(passage));
  }
  return result;
}

absl::Status Victim::AskDuring(const std::function<void()>& attack, int requests) {
  if (expected_.empty()) {
    ASSIGN_OR_RETURN(const Completion undisturbed, Ask());
    expected_ = undisturbed.ids;
  }
  std::atomic<bool> ended{false};
  std::thread attacker([&] {
    attack();
    ended = true;
  });
  absl::Status result;
  for (int served = 0; result.ok() && (!ended || served < requests); ++served) {
    const absl::StatusOr<Completion> completion = Ask();
    if (!completion.ok()) {
      result = Internal("request %d: %s", served, completion.status().ToString());
    } else if (completion->ids != expected_) {
      result = Internal("request %d got other tokens", served);
    }
  }
  attacker.join();
  return result;
}

bool NobodyAnswered(const std::string& statuses) {
  std::istringstream lines(statuses);
  std::string status;
  int count = 0, refused = 0;
  while (lines >> status >> count && (status == "UNAVAILABLE" || status == "UNAUTHENTICATED" || status == "PERMISSION_DENIED")) {
    refused += count;
  }
  return lines.eof() && refused > 0;
}

bool Alive(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(stat, text)) return false;
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] != 'Z';
}

int64_t NumberInStatus(pid_t pid, const std::string& line) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string name; status >> name;) {
    int64_t number = 0;
    if (name == line + ":" && status >> number) return number;
    status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return -1;
}

int64_t MemoryOf(pid_t pid, const std::string& line) {
  const int64_t kib = NumberInStatus(pid, line);
  return kib < 0 ? kib : kib << 10;
}

bool Eventually(absl::Duration timeout, const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::In(timeout);
  while (!deadline.Passed()) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return condition();
}

}  // namespace ferry
