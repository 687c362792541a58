#pragma once

// Single measurements of `ferry bench`, by calls of a server that does nothing else.

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "cli/client.h"

namespace ferry {

struct BenchRun {
  int64_t prompt = 0, generated = 0, n_kv = 0;  // n_kv: tokens cached before the prompt
  double prefill_seconds = 0, decode_seconds = 0;
  proto::ExpertCounters prefill, decode;
  double prefill_rate() const { return prefill_seconds > 0 ? static_cast<double>(prompt) / prefill_seconds : 0; }
  double decode_rate() const { return decode_seconds > 0 ? static_cast<double>(generated) / decode_seconds : 0; }
};

class BenchRunner {
 public:
  struct Options {
    bool cold = false;             // the workers' expert slots are emptied before each prompt
    std::optional<uint64_t> seed;  // of the random prompts; none: a random one
  };
  // `client` must outlive it. `vocab`: ids of the prompts are below it.
  BenchRunner(const Options& options, Client* client, int64_t vocab);

  // Appends `length` random tokens to `tokens`, computes them behind the earlier ones, which the server has cached, and continues
  // them by `generate`. Prompts that begin with empty `tokens` differ from the first token on, so none of them finds another one
  // in the server's cache. Errors: those of Client::Generate.
  absl::StatusOr<BenchRun> Measure(std::vector<uint32_t>& tokens, int64_t length, int64_t generate);

 private:
  absl::StatusOr<proto::Finish> Generate(const std::vector<uint32_t>& tokens, int64_t max_tokens, bool cold);

  Client& client_;
  const bool cold_;
  const int64_t vocab_;
  std::mt19937_64 random_;
};

// Tells a person at a terminal what is measured, over its earlier words; nothing where standard error is no terminal. An empty
// text removes them.
void ShowMeasuring(const std::string& text);

}  // namespace ferry
