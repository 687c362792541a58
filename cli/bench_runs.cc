#include "cli/bench_runs.h"

#include <unistd.h>

#include <cstdio>

namespace ferry {

BenchRunner::BenchRunner(const Options& options, Client* client, int64_t vocab)
    : client_(*client), cold_(options.cold), vocab_(vocab), random_(options.seed ? *options.seed : std::random_device()()) {}

absl::StatusOr<BenchRun> BenchRunner::Measure(std::vector<uint32_t>& tokens, int64_t length, int64_t generate) {
  BenchRun run{.prompt = length, .n_kv = static_cast<int64_t>(tokens.size())};
  for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<uint32_t>(random_() % static_cast<uint64_t>(vocab_)));
  ASSIGN_OR_RETURN(const proto::Finish prefill, Generate(tokens, 0, cold_));
  run.prefill_seconds = prefill.prefill_seconds();
  run.prefill = prefill.experts();
  if (generate > 0) {
    // The prompt is in the cache but for its last token; the first token comes with it, so n + 1 make n decode steps.
    ASSIGN_OR_RETURN(const proto::Finish decode, Generate(tokens, generate + 1, /*cold=*/false));
    run.generated = static_cast<int64_t>(decode.generated_tokens()) - 1;
    run.decode_seconds = decode.decode_seconds();
    run.decode = decode.experts();
  }
  return run;
}

absl::StatusOr<proto::Finish> BenchRunner::Generate(const std::vector<uint32_t>& tokens, int64_t max_tokens, bool cold) {
  proto::GenerateRequest request;
  request.mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
  request.set_max_tokens(static_cast<uint32_t>(max_tokens));
  request.set_ignore_eos(true);
  request.set_forget_experts(cold);
  request.mutable_sampling()->set_temperature(0);
  return client_.Generate(request, [](const proto::GenerateResponse&) { return true; });
}

void ShowMeasuring(const std::string& text) {
  static const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (terminal) std::fprintf(stderr, "\r%s\033[K", text.c_str());
}

}  // namespace ferry
