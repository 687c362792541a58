#pragma once

// Real processes on the bundled model: a coordinator and workers started as `ferry serve` starts them, and a client.

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/client.h"
#include "cli/model_options.h"
#include "tests/testing/source_path.h"

namespace ferry {

inline const std::string kDemoModel = SourcePath("models/demo-moe.gguf");

// The folder of the programs that are tested, which is the test's own.
std::string Programs();

// What a test varies; the rest is as a user has it.
ModelOptions DemoModel(int workers);

// A generation from token ids with temperature 0, and what came of it.
struct Completion {
  std::vector<uint32_t> ids;
  std::string text;
  std::vector<float> logprobs;         // of the generated tokens
  std::vector<float> prompt_logprobs;  // of prompt tokens 1, 2, ...
  std::vector<uint32_t> best;          // most likely token at each of those positions
  proto::Finish finish;
  bool operator==(const Completion& other) const {  // bit for bit
    return ids == other.ids && logprobs == other.logprobs && prompt_logprobs == other.prompt_logprobs;
  }
};
absl::StatusOr<Completion> Greedy(Client& client, const std::vector<uint32_t>& prompt, uint32_t max_tokens,
                                  bool prompt_logprobs = false);

// The bundled prompt that tests use where any will do.
std::vector<uint32_t> SomePrompt(size_t tokens);

struct GoldenContinuation {
  std::vector<uint32_t> prompt, greedy;
  std::vector<double> margin;  // between the two best logits, at each step
};
struct GoldenPassage {
  std::vector<uint32_t> ids;
  std::vector<double> logprobs;  // of ids[1], ids[2], ...
  std::vector<uint32_t> best;    // at each position of ids
  double perplexity = 0;
};
std::vector<GoldenContinuation> GoldenContinuations();
std::vector<GoldenPassage> GoldenPassages();

// A client that asks the same again and again, and has to get the same tokens whatever others do meanwhile.
class Victim {
 public:
  explicit Victim(Client* client) : client_(*client) {}
  // Runs `attack` beside requests, one after the other, until it has ended and at least `requests` were answered. Internal: an
  // answer was none, or another than when nobody attacked.
  absl::Status AskDuring(const std::function<void()>& attack, int requests = 20);

 private:
  absl::StatusOr<Completion> Ask() { return Greedy(client_, SomePrompt(30), 12); }

  Client& client_;
  std::vector<uint32_t> expected_;  // empty: it has not asked yet
};

// Whether all calls of a cluster_attacker, which printed `statuses`, were refused: there was no connection, or no right to call.
bool NobodyAnswered(const std::string& statuses);

bool Alive(pid_t pid);
// The number of a line of /proc/PID/status, such as "Seccomp"; -1 where there is none.
int64_t NumberInStatus(pid_t pid, const std::string& line);
// A line of /proc/PID/status, "VmRSS" or "VmHWM", in bytes; -1 where there is none.
int64_t MemoryOf(pid_t pid, const std::string& line);
// Waits until `condition` holds; false after `timeout`.
bool Eventually(absl::Duration timeout, const std::function<bool()>& condition);

}  // namespace ferry
