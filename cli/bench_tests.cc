#include "cli/bench_tests.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/escaped.h"
#include "common/program.h"

namespace ferry {
namespace {

using Row = nlohmann::ordered_json;

struct Spread {
  double mean = 0, deviation = 0;  // of a sample: divided by one less than its size
};
Spread SpreadOf(const std::vector<double>& values) {
  Spread spread;
  for (const double value : values) spread.mean += value / static_cast<double>(values.size());
  for (const double value : values) spread.deviation += (value - spread.mean) * (value - spread.mean);
  spread.deviation = values.size() < 2 ? 0 : std::sqrt(spread.deviation / static_cast<double>(values.size() - 1));
  return spread;
}

std::vector<double> TokenRatesOf(const BenchTest& test, const std::vector<double>& seconds) {
  std::vector<double> rates;
  for (const double each : seconds) rates.push_back(each > 0 ? static_cast<double>(test.tokens()) / each : 0);
  return rates;
}

// Fields by llama-bench's names, in its order, as far as Ferry has them.
Row RowOf(const BenchSubject& subject, const BenchTest& test, const std::vector<double>& seconds) {
  std::vector<int64_t> nanoseconds;
  for (const double each : seconds) nanoseconds.push_back(static_cast<int64_t>(each * 1e9));
  const std::vector<double> rates = TokenRatesOf(test, seconds);
  const Spread time = SpreadOf(seconds), rate = SpreadOf(rates);
  const auto known = [](int64_t value) { return value > 0 ? Row(value) : Row(nullptr); };
  const auto said = [](const std::string& value) { return value.empty() ? Row(nullptr) : Row(value); };
  return {{"build_version", subject.version},
          {"cpu_info", subject.engine},
          {"gpu_info", subject.gpus},
          {"backends", subject.backend},
          {"model_filename", said(subject.filename)},
          {"model_type", subject.model},
          {"model_size", subject.model_bytes},
          {"n_workers", subject.workers},
          {"n_batch", known(subject.batch)},
          {"n_ubatch", known(subject.micro_batch)},
          {"n_threads", known(subject.threads)},
          {"type_k", said(subject.key_type)},
          {"type_v", said(subject.value_type)},
          {"n_prompt", test.prompt},
          {"n_gen", test.generate},
          {"n_depth", test.depth},
          {"test_time", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
          {"avg_ns", static_cast<int64_t>(time.mean * 1e9)},
          {"stddev_ns", static_cast<int64_t>(time.deviation * 1e9)},
          {"avg_ts", rate.mean},
          {"stddev_ts", rate.deviation},
          {"samples_ns", nanoseconds},
          {"samples_ts", rates}};
}

std::string JsonText(const Row& value, int indent = -1) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A line of CSV, by `cell` of each field; samples are left out, as llama-bench does.
template <typename Cell>
void PrintCsv(const Row& row, const Cell& cell) {
  std::string line;
  for (const auto& [name, value] : row.items()) {
    if (!value.is_array()) absl::StrAppend(&line, line.empty() ? "" : ",", cell(name, value));
  }
  std::printf("%s\n", line.c_str());
}

std::string CsvCell(const Row& value) {
  const std::string text = value.is_null() ? "" : value.is_string() ? value.get<std::string>() : JsonText(value);
  return "\"" + absl::StrReplaceAll(text, {{"\"", "\"\""}}) + "\"";
}

void PrintMarkdown(const BenchSubject& subject, const BenchTest& test, const std::vector<double>& seconds, bool head) {
  if (head) {
    std::printf("| %-30s | %10s | %-10s | %7s | %7s | %6s | %6s | %20s | %20s |\n", "model", "size", "backend", "workers",
                "threads", "ub", "type_k", "test", "t/s");
    std::printf("| %s | ---------: | %s | ------: | ------: | -----: | -----: | -------------------: | -------------------: |\n",
                std::string(30, '-').c_str(), std::string(10, '-').c_str());
  }
  const Spread rate = SpreadOf(TokenRatesOf(test, seconds));
  const auto known = [](int64_t value) { return value > 0 ? std::to_string(value) : std::string("auto"); };
  std::printf("| %-30s | %10s | %-10s | %7lld | %7s | %6s | %6s | %20s | %21s |\n", Escaped(subject.model).c_str(),
              HumanBytes(static_cast<double>(subject.model_bytes)).c_str(), subject.backend.c_str(),
              static_cast<long long>(subject.workers), known(subject.threads).c_str(), known(subject.micro_batch).c_str(),
              subject.key_type.c_str(), test.Name().c_str(), absl::StrFormat("%.2f ± %.2f", rate.mean, rate.deviation).c_str());
}

}  // namespace

std::string BenchTest::Name() const {
  std::string name = prompt > 0 ? absl::StrCat("pp", prompt) : "";
  if (generate > 0) absl::StrAppend(&name, prompt > 0 ? "+" : "", "tg", generate);
  if (depth > 0) absl::StrAppend(&name, " @ d", depth);
  return name;
}

std::vector<BenchTest> BenchTests(const std::vector<int64_t>& prompts, const std::vector<int64_t>& generated,
                                  const std::vector<std::pair<int64_t, int64_t>>& pairs, const std::vector<int64_t>& depths) {
  std::vector<BenchTest> tests;
  for (const int64_t depth : depths) {
    for (const int64_t prompt : prompts) tests.push_back({.prompt = prompt, .depth = depth});
    for (const int64_t generate : generated) tests.push_back({.generate = generate, .depth = depth});
    for (const auto& [prompt, generate] : pairs) tests.push_back({.prompt = prompt, .generate = generate, .depth = depth});
  }
  std::erase_if(tests, [](const BenchTest& test) { return test.tokens() == 0; });
  return tests;
}

absl::StatusOr<std::vector<double>> RunBenchTest(const BenchTest& test, int repetitions, BenchRunner& runner) {
  std::vector<double> seconds;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    ShowMeasuring(absl::StrFormat("measuring %s, run %d of %d", test.Name(), repetition + 1, repetitions));
    std::vector<uint32_t> tokens;
    // A token is generated behind some token: without a prompt and a depth behind a single one.
    const int64_t before = test.prompt == 0 ? std::max<int64_t>(test.depth, 1) : test.depth;
    if (before > 0 && test.prompt > 0) {
      ASSIGN_OR_RETURN([[maybe_unused]] const BenchRun depth, runner.Measure(tokens, before, 0));
    }
    const int64_t length = test.prompt > 0 ? test.prompt : before;
    ASSIGN_OR_RETURN(const BenchRun run, runner.Measure(tokens, length, test.generate));
    seconds.push_back((test.prompt > 0 ? run.prefill_seconds : 0) + run.decode_seconds);
  }
  ShowMeasuring("");
  return seconds;
}

BenchSubject BenchSubjectOf(const proto::GetServerInfoResponse& info, const proto::GetModelInfoResponse& model) {
  BenchSubject subject{.version = info.version(),
                       .engine = info.engine(),
                       .model = model.name(),
                       .backend = "CPU",
                       .model_bytes = info.arena_bytes(),
                       .workers = info.workers_size()};
  for (const proto::WorkerInfo& worker : info.workers()) {
    subject.model_bytes += worker.dense_bytes();
    if (!absl::StartsWith(worker.device(), "cuda")) continue;
    absl::StrAppend(&subject.gpus, subject.gpus.empty() ? "" : ", ", worker.device());
    subject.backend = "CUDA";
  }
  return subject;
}

absl::Status BenchReport::Add(const BenchSubject& subject, const BenchTest& test, const std::vector<double>& seconds) {
  const bool first = rows_++ == 0;
  if (format_ == "md") {
    PrintMarkdown(subject, test, seconds, first);
    return FlushOutput();
  }
  const Row row = RowOf(subject, test, seconds);
  if (format_ == "csv") {
    if (first) PrintCsv(row, [](const std::string& name, const Row&) { return name; });
    PrintCsv(row, [](const std::string&, const Row& value) { return CsvCell(value); });
  } else if (format_ == "jsonl") {
    std::printf("%s\n", JsonText(row).c_str());
  } else {
    std::printf("%s%s", first ? "[\n" : ",\n", JsonText(row, 2).c_str());
  }
  return FlushOutput();
}

absl::Status BenchReport::End() {
  if (format_ == "json") std::printf(rows_ == 0 ? "[]\n" : "\n]\n");
  return FlushOutput();
}

}  // namespace ferry
