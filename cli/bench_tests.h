#pragma once

// The tests of llama-bench: reading a prompt (pp), writing (tg), and both (pg), each behind a depth of cached tokens, in
// llama-bench's formats.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/bench_runs.h"
#include "cli/model_options.h"

namespace ferry {

struct BenchTest {
  int64_t prompt = 0, generate = 0, depth = 0;  // tokens; not both of prompt and generate are 0
  int64_t tokens() const { return prompt + generate; }
  // "pp512", "tg128", "pp512+tg128 @ d4096"
  std::string Name() const;
};

// Every depth with a test of each prompt length, of each number of generated tokens, and of each pair; zeros make no test.
std::vector<BenchTest> BenchTests(const std::vector<int64_t>& prompts, const std::vector<int64_t>& generated,
                                  const std::vector<std::pair<int64_t, int64_t>>& pairs, const std::vector<int64_t>& depths);

// The seconds of each of `repetitions` runs.
absl::StatusOr<std::vector<double>> RunBenchTest(const BenchTest& test, int repetitions, BenchRunner& runner);

// The server that was measured.
struct BenchSubject {
  std::string version, engine, model, filename;  // `filename` empty: it was not started here
  std::string backend, gpus;                     // "CUDA", "CPU"; the workers' GPUs
  uint64_t model_bytes = 0;                      // experts and dense weights in memory
  int64_t workers = 0, threads = 0;              // threads 0: the default
  int64_t batch = 0, micro_batch = 0;            // 0: not known
  std::string key_type, value_type;              // empty: not known
};
BenchSubject BenchSubjectOf(const proto::GetServerInfoResponse& info, const proto::GetModelInfoResponse& model);

// Prints results as they come, on standard output.
class BenchReport {
 public:
  // `format`: md, csv, json or jsonl.
  explicit BenchReport(std::string format) : format_(std::move(format)) {}
  // Each ends with the errors of FlushOutput.
  absl::Status Add(const BenchSubject& subject, const BenchTest& test, const std::vector<double>& seconds);
  // Behind the last one.
  absl::Status End();

 private:
  const std::string format_;
  int rows_ = 0;
};

}  // namespace ferry
