// `ferry bench`: prefill and decode rates in the table of llama-sweep-bench, and under it the bytes moved and the share of the
// machine's limits that was reached. The limits are what the processes probed at their start, in the same run. With -o: the tests
// and formats of llama-bench.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/algorithm/container.h"
#include "absl/strings/str_split.h"
#include "cli/bench_runs.h"
#include "cli/bench_tests.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/predicted_model.h"
#include "cli/prompt.h"
#include "common/command_line.h"
#include "common/program.h"
#include "coordinator/planning/decode_prediction.h"
#include "coordinator/planning/layer_costs.h"
#include "coordinator/planning/prefill_prediction.h"

namespace ferry {
namespace {

constexpr int64_t kContextSpare = 64;  // tokens of the context beside those of the longest test
constexpr const char* kListedFlags[] = {"-b", "--ubatch-size", "--cache-type-k", "--cache-type-v", "-t"};

// A flag of the model for which bench takes a list of values. It measures with each of them.
struct ListedFlag {
  const ModelFlag* flag = nullptr;
  std::vector<std::string> values;  // empty: not given
};

struct BenchOptions {
  ModelOptions model;
  std::string server;
  std::string prompts = "512", generated;  // `generated` empty: the default of the table
  std::vector<std::string> pairs;          // -pg
  std::string depths;
  std::string output;  // md, csv, json or jsonl; empty: the table with limits
  std::vector<ListedFlag> listed;
  int repetitions = 3;
  bool sweep = false, json = false, cold = false;
  std::optional<uint64_t> seed = 1;  // none: random
};

using Run = BenchRun;

// What the model and the machine allow; zeros where they are not known.
struct Limits {
  double link = 0;             // B/s, of all workers together
  double host_read = 0;        // B/s
  double host_flops = 0;       // FLOP/s
  bool dense_on_host = true;   // workers are CPU workers: their weights come from host memory too
  double dense_bytes = 0;      // read for one token of decode, without the embedding table
  double flops_per_token = 0;  // of a prefill token: attention matrices and experts
};

// What `ferry plan` says to the same model and rates; empty when the model is not known.
struct Predictions {
  std::unique_ptr<PredictedModel> model;
  FoundRates found;
  bool gpu = false;

  PredictionInput Input(bool cold) const {
    PredictionInput input = model->Input(found.rates, found.slots, gpu);
    input.cold = cold;
    return input;
  }
};

Run Median(std::vector<Run> runs) {
  Run median = runs.front();
  const auto pick = [&](auto member) {
    std::sort(runs.begin(), runs.end(), [&](const Run& a, const Run& b) { return a.*member < b.*member; });
    return runs[runs.size() / 2];
  };
  const Run prefill = pick(&Run::prefill_seconds), decode = pick(&Run::decode_seconds);
  median.prefill_seconds = prefill.prefill_seconds, median.prefill = prefill.prefill;
  median.decode_seconds = decode.decode_seconds, median.decode = decode.decode;
  median.generated = decode.generated;
  return median;
}

absl::StatusOr<Predictions> PredictionsFor(const BenchOptions& options, const proto::GetServerInfoResponse& info) {
  Predictions predictions{.model = nullptr, .found = RatesOf(info)};
  for (const proto::WorkerInfo& worker : info.workers()) predictions.gpu |= worker.device().starts_with("cuda");
  if (options.model.model.empty()) return predictions;
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, options.model.Devices());
  ASSIGN_OR_RETURN(predictions.model, PredictedModel::Open(options.model, info.workers_size(), ModelOptions::GpuBytes(devices)));
  return predictions;
}

Limits LimitsOf(const proto::GetServerInfoResponse& info, const Predictions& predictions) {
  Limits limits{.host_read = info.host_read_bytes_per_second(), .host_flops = info.host_flops_per_second()};
  for (const proto::WorkerInfo& worker : info.workers()) {
    const double together = worker.link_together_bytes_per_second();
    limits.link += together > 0 ? together : worker.link_bytes_per_second();
  }
  limits.dense_on_host = !predictions.gpu;
  if (predictions.model == nullptr) return limits;
  const ModelConfig& config = predictions.model->config();
  const ModelSizes& sizes = predictions.model->sizes();
  for (const int64_t bytes : sizes.dense_bytes) limits.dense_bytes += static_cast<double>(bytes);
  limits.dense_bytes += static_cast<double>(sizes.output_bytes);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    limits.flops_per_token += DenseMatrixFlops(config, layer);
    if (config.layers[layer].experts) {
      limits.flops_per_token += 2.0 * 3 * config.n_embd * config.expert.n_ff * config.router.top_k;
    }
  }
  return limits;
}

std::string Share(double value, double limit) {
  return limit > 0 ? absl::StrFormat(" = %.0f %% of the limit", 100 * value / limit) : "";
}

double SharePercent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

// "plan says 512.3 t/s, 4 % above the measured rate"
std::string Compare(double predicted, double measured) {
  if (measured <= 0) return "";
  const double off = 100 * (predicted / measured - 1);
  return absl::StrFormat("plan says %.1f t/s, %.0f %% %s the measured rate", predicted, std::abs(off),
                         off < 0 ? "below" : "above");
}

DecodePrediction PredictedDecode(const PredictionInput& input, const PrefillPrediction& prefill, int64_t generated, bool cold) {
  return cold ? PredictDecodeAfter(input, prefill, generated) : PredictDecode(input, prefill.tokens);
}

// Plans know the prompt alone, behind nothing, and of partly filled slots that nothing is resident.
void PrintPlan(const Run& run, const Predictions& predictions, bool cold) {
  if (predictions.model == nullptr || run.n_kv > 0) return;
  const PredictionInput input = predictions.Input(cold);
  const PrefillPrediction prefill = PredictPrefill(input, run.prompt);
  std::printf("    %s: %.0f activated = %.0f resident + %.0f shipped (%.0f by helpers) + %.0f on the host%s\n",
              Compare(prefill.tokens_per_second(), run.prefill_rate()).c_str(), prefill.activated, prefill.resident,
              prefill.shipped, prefill.helped, prefill.on_host,
              cold || prefill.shipped == 0 ? "" : "; it takes slots to be empty at the start: compare with --cold");
  if (run.generated == 0) return;
  const DecodePrediction decode = PredictedDecode(input, prefill, run.generated, cold);
  std::printf("    decode: %s, with %.0f %% of the experts resident\n",
              Compare(1 / decode.seconds_per_token, run.decode_rate()).c_str(), 100 * decode.resident_share);
}

void PrintUnder(const Run& run, const Limits& limits) {
  std::printf("  prefill %lld: %s\n", static_cast<long long>(run.prompt), DescribeExperts(run.prefill).c_str());
  if (run.prefill.bytes_shipped() > 0) {
    const double rate = static_cast<double>(run.prefill.bytes_shipped()) / run.prefill_seconds;
    std::printf("    link %s over the whole prefill%s of %s; busy %.0f %% of it; %d experts came in vain\n",
                HumanRate(rate).c_str(), Share(rate, limits.link).c_str(), HumanRate(limits.link).c_str(),
                SharePercent(run.prefill.copy_busy_seconds(), run.prefill.timed_seconds()),
                static_cast<int>(run.prefill.shipped_unused()));
  }
  if (run.prefill.timed_seconds() > 0) {
    std::printf("    compute queues worked %.0f %% of the time and stood still for copies %.0f %%\n",
                SharePercent(run.prefill.device_seconds(), run.prefill.timed_seconds()),
                SharePercent(run.prefill.copy_wait_seconds(), run.prefill.timed_seconds()));
  }
  if (limits.flops_per_token > 0) {
    const double rate = limits.flops_per_token * run.prefill_rate();
    std::printf("    products %.0f GFLOP/s%s\n", rate / 1e9, limits.dense_on_host ? Share(rate, limits.host_flops).c_str() : "");
  }
  if (run.generated == 0) return;
  std::printf("  decode: %s\n", DescribeExperts(run.decode).c_str());
  const double tokens = static_cast<double>(run.generated + 1);  // the step of the last prompt token is counted too
  const double host_bytes =
      static_cast<double>(run.decode.host_bytes_read()) / tokens + (limits.dense_on_host ? limits.dense_bytes : 0);
  const double rate = host_bytes * run.decode_rate();
  std::printf("    %s of weights from host memory a token: %s%s\n", HumanBytes(host_bytes).c_str(), HumanRate(rate).c_str(),
              Share(rate, limits.host_read).c_str());
}

nlohmann::json CountersJson(const proto::ExpertCounters& c) {
  return {{"activated", c.activated()},
          {"resident", c.resident()},
          {"shipped", c.shipped()},
          {"on_host", c.on_host()},
          {"bytes_shipped", c.bytes_shipped()},
          {"copies", c.copies()},
          {"copy_wait_s", c.copy_wait_seconds()},
          {"host_wait_s", c.host_wait_seconds()},
          {"host_bytes_read", c.host_bytes_read()},
          {"copy_busy_s", c.copy_busy_seconds()},
          {"compute_s", c.compute_seconds()},
          {"shipped_unused", c.shipped_unused()},
          {"device_s", c.device_seconds()},
          {"timed_s", c.timed_seconds()}};
}

void PrintJson(const Run& run, const Limits& limits, const Predictions& predictions, bool cold) {
  nlohmann::json line = {{"pp", run.prompt},
                         {"tg", run.generated},
                         {"n_kv", run.n_kv},
                         {"t_pp", run.prefill_seconds},
                         {"s_pp", run.prefill_rate()},
                         {"t_tg", run.decode_seconds},
                         {"s_tg", run.decode_rate()},
                         {"prefill", CountersJson(run.prefill)},
                         {"decode", CountersJson(run.decode)},
                         {"limits",
                          {{"link_bytes_per_second", limits.link},
                           {"host_read_bytes_per_second", limits.host_read},
                           {"host_flops_per_second", limits.host_flops},
                           {"dense_bytes_per_token", limits.dense_bytes},
                           {"flops_per_prefill_token", limits.flops_per_token}}},
                         {"rates", RatesJson(predictions.found.rates)},
                         {"rates_source", predictions.found.source}};
  if (predictions.model != nullptr && run.n_kv == 0) {
    const PredictionInput input = predictions.Input(cold);
    const PrefillPrediction prefill = PredictPrefill(input, run.prompt);
    line["plan"] = {{"s_pp", prefill.tokens_per_second()},
                    {"activated", prefill.activated},
                    {"resident", prefill.resident},
                    {"shipped", prefill.shipped},
                    {"helped", prefill.helped},
                    {"on_host", prefill.on_host},
                    {"bytes_shipped", prefill.bytes_shipped},
                    {"s_tg", 1 / PredictedDecode(input, prefill, run.generated, cold).seconds_per_token}};
  }
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

// The line on standard error about the machine, and the head of the table.
void PrintHead(const proto::GetServerInfoResponse& info, const Limits& limits, const Predictions& predictions) {
  const MachineRates& rates = predictions.found.rates;
  std::fprintf(stderr, "%s; host reads %s, int8 dot products %.0f Gop/s; link %s; rates %s\n", info.engine().c_str(),
               HumanRate(limits.host_read).c_str(), limits.host_flops / 1e9,
               limits.link > 0 ? HumanRate(limits.link).c_str() : "none", predictions.found.source.c_str());
  std::fprintf(stderr, "experts on the host: %s and %.0f GFLOP/s alone, %s and %.0f beside the links",
               HumanRate(rates.host.read_bytes_per_second).c_str(), rates.host.flops_per_second / 1e9,
               HumanRate(rates.host_beside_links.read_bytes_per_second).c_str(), rates.host_beside_links.flops_per_second / 1e9);
  for (const WorkerRates& worker : rates.workers) {
    if (worker.link.alone > 0)
      std::fprintf(stderr, "; a link %s alone, %s with the others, %s beside the host", HumanRate(worker.link.alone).c_str(),
                   HumanRate(worker.link.together).c_str(), HumanRate(worker.link.beside_host).c_str());
  }
  std::fprintf(stderr, "\n");
  std::printf("|%6s | %6s | %6s | %8s | %8s | %8s | %8s |\n", "PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s");
  std::printf("|%6s-|-%6s-|-%6s-|-%8s-|-%8s-|-%8s-|-%8s-|\n", "------", "------", "------", "--------", "--------", "--------",
              "--------");
}

// What the table's rows measure.
struct TableLengths {
  std::vector<int64_t> prompts, generated;
};

// Measures every length, and calls report(run) after each, until it fails. `context`: tokens of the KV cache.
absl::Status MeasureAll(const BenchOptions& options, const TableLengths& lengths, int64_t context, BenchRunner& runner,
                        const std::function<absl::Status(const Run&)>& report) {
  if (options.sweep) {
    // As llama-sweep-bench: the context fills up in steps of the first length.
    std::vector<uint32_t> tokens;
    const int64_t prompt = lengths.prompts.front(), generate = lengths.generated.front();
    while (static_cast<int64_t>(tokens.size()) + prompt + generate < context) {
      ShowMeasuring(absl::StrFormat("measuring %d tokens behind %d", prompt, tokens.size()));
      ASSIGN_OR_RETURN(const Run run, runner.Measure(tokens, prompt, generate));
      ShowMeasuring("");
      RETURN_IF_ERROR(report(run));
    }
    return absl::OkStatus();
  }
  for (const int64_t prompt : lengths.prompts) {
    for (const int64_t generate : lengths.generated) {
      std::vector<Run> runs;
      for (int repetition = 0; repetition < options.repetitions; ++repetition) {
        ShowMeasuring(absl::StrFormat("measuring a prompt of %d, run %d of %d", prompt, repetition + 1, options.repetitions));
        std::vector<uint32_t> tokens;
        ASSIGN_OR_RETURN(const Run run, runner.Measure(tokens, prompt, generate));
        runs.push_back(run);
      }
      ShowMeasuring("");
      RETURN_IF_ERROR(report(Median(std::move(runs))));
    }
  }
  return absl::OkStatus();
}

// The first prompt of a server is slower than later ones.
absl::Status WarmUp(BenchRunner& runner, int64_t length) {
  std::vector<uint32_t> tokens;
  return runner.Measure(tokens, std::clamp<int64_t>(length, 1, 64), 1).status();
}

absl::Status RunTable(BenchOptions options, const TableLengths& lengths) {
  const int64_t longest = *std::max_element(lengths.prompts.begin(), lengths.prompts.end()) +
                          *std::max_element(lengths.generated.begin(), lengths.generated.end());
  if (options.model.context == 0 && options.server.empty()) options.model.context = longest + kContextSpare;
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(options.server, options.model));
  ASSIGN_OR_RETURN(const proto::GetModelInfoResponse model, client->ModelInfo());
  ASSIGN_OR_RETURN(const proto::GetServerInfoResponse info, client->ServerInfo());
  ASSIGN_OR_RETURN(const Predictions predictions, PredictionsFor(options, info));
  const Limits limits = LimitsOf(info, predictions);
  BenchRunner runner({.cold = options.cold, .seed = options.seed}, client.get(), model.vocab_size());

  if (!options.json) PrintHead(info, limits, predictions);
  std::vector<Run> rows;
  const auto report = [&](const Run& run) {
    rows.push_back(run);
    if (options.json) {
      PrintJson(run, limits, predictions, options.cold);
    } else {
      std::printf("|%6lld | %6lld | %6lld | %8.3f | %8.2f | %8.3f | %8.2f |\n", static_cast<long long>(run.prompt),
                  static_cast<long long>(run.generated), static_cast<long long>(run.n_kv), run.prefill_seconds,
                  run.prefill_rate(), run.decode_seconds, run.decode_rate());
    }
    return FlushOutput();
  };
  if (!options.sweep) RETURN_IF_ERROR(WarmUp(runner, lengths.prompts.front()));
  RETURN_IF_ERROR(MeasureAll(options, lengths, model.context_length(), runner, report));
  if (!options.json) {
    std::printf("\n");
    for (const Run& run : rows) {
      PrintUnder(run, limits);
      PrintPlan(run, predictions, options.cold);
    }
  }
  return client->Close();
}

// Every combination of the listed flags' values, the last one changing first.
absl::StatusOr<std::vector<ModelOptions>> Combinations(const BenchOptions& options) {
  std::vector<ModelOptions> combinations = {options.model};
  for (const ListedFlag& listed : options.listed) {
    if (listed.values.empty()) continue;
    std::vector<ModelOptions> longer;
    for (const ModelOptions& each : combinations) {
      for (const std::string& value : listed.values) {
        RETURN_IF_ERROR(SetModelFlag(*listed.flag, value, &longer.emplace_back(each)));
      }
    }
    combinations = std::move(longer);
  }
  return combinations;
}

absl::Status RunTests(const BenchOptions& options, const ModelOptions& served, const std::vector<BenchTest>& tests,
                      BenchReport& report) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(options.server, served));
  ASSIGN_OR_RETURN(const proto::GetModelInfoResponse model, client->ModelInfo());
  ASSIGN_OR_RETURN(const proto::GetServerInfoResponse info, client->ServerInfo());
  BenchSubject subject = BenchSubjectOf(info, model);
  if (options.server.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> devices, served.Devices());
    ASSIGN_OR_RETURN(const std::unique_ptr<PredictedModel> placed,
                     PredictedModel::Open(served, info.workers_size(), ModelOptions::GpuBytes(devices)));
    subject.filename = served.model;
    subject.threads = served.threads;
    subject.batch = placed->placement().cache.max_batch_tokens;
    subject.micro_batch = placed->placement().cache.micro_batch_tokens;
    subject.key_type = served.key_type;
    subject.value_type = served.value_type;
  }
  BenchRunner runner({.cold = options.cold, .seed = options.seed}, client.get(), model.vocab_size());
  RETURN_IF_ERROR(WarmUp(runner, tests.front().prompt));
  for (const BenchTest& test : tests) {
    ASSIGN_OR_RETURN(const std::vector<double> seconds, RunBenchTest(test, options.repetitions, runner));
    RETURN_IF_ERROR(report.Add(subject, test, seconds));
  }
  return client->Close();
}

absl::Status RunAllTests(const BenchOptions& options, const std::vector<BenchTest>& tests) {
  if (tests.empty()) return InvalidArgument("there is nothing to measure: -p, -n and -pg are 0");
  ASSIGN_OR_RETURN(const std::vector<ModelOptions> combinations, Combinations(options));
  int64_t longest = 0;
  for (const BenchTest& test : tests) longest = std::max(longest, test.depth + test.tokens());
  BenchReport report(options.output.empty() ? "md" : options.output);
  for (ModelOptions served : combinations) {
    if (served.context == 0) served.context = longest + kContextSpare;
    RETURN_IF_ERROR(RunTests(options, served, tests, report));
  }
  return report.End();
}

// "512,128"
absl::StatusOr<std::pair<int64_t, int64_t>> ParsePair(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  if (parts.size() != 2) return InvalidArgument("-pg is '%s', want two numbers of tokens such as 512,128", text);
  ASSIGN_OR_RETURN(const std::vector<int64_t> prompt, ParseLengths("-pg", parts[0]));
  ASSIGN_OR_RETURN(const std::vector<int64_t> generate, ParseLengths("-pg", parts[1]));
  return std::make_pair(prompt.front(), generate.front());
}

absl::Status RunBench(BenchOptions options) {
  RETURN_IF_ERROR(options.model.CheckOutputs({}));
  options.model.parallel = 1;
  ASSIGN_OR_RETURN(const std::vector<int64_t> prompts, ParseLengths("-p", options.prompts, /*min=*/0));
  const bool lists =
      std::any_of(options.listed.begin(), options.listed.end(), [](const auto& each) { return each.values.size() > 1; });
  const bool tests = !options.output.empty() || !options.pairs.empty() || !options.depths.empty() || lists ||
                     std::count(prompts.begin(), prompts.end(), 0) > 0;
  const char* const generated_default = tests ? "128" : "32";
  ASSIGN_OR_RETURN(const std::vector<int64_t> generated,
                   ParseLengths("-n", options.generated.empty() ? generated_default : options.generated, /*min=*/0));
  if (!tests) {
    ASSIGN_OR_RETURN(const std::vector<ModelOptions> served, Combinations(options));
    options.model = served.front();
    return RunTable(std::move(options), {prompts, generated});
  }
  if (options.sweep || options.json) {
    return InvalidArgument("--sweep and --json are of the table with limits, which -o, -pg, -d, lists of flags and -p 0 replace");
  }
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (const std::string& pair : options.pairs) {
    ASSIGN_OR_RETURN(pairs.emplace_back(), ParsePair(pair));
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> depths,
                   ParseLengths("-d", options.depths.empty() ? "0" : options.depths, /*min=*/0));
  return RunAllTests(options, BenchTests(prompts, generated, pairs, depths));
}

// Where llama-bench takes a list for a flag, this makes the flag take one.
void AddListedFlags(CLI::App& app, const std::shared_ptr<BenchOptions>& options) {
  for (const ModelFlag& flag : ModelFlags()) {
    const std::string names = flag.names;
    const std::string name = names.substr(0, names.find(','));
    if (!absl::c_linear_search(kListedFlags, name)) continue;
    options->listed.push_back({.flag = &flag});
  }
  for (size_t i = 0; i < options->listed.size(); ++i) {
    const ModelFlag& flag = *options->listed[i].flag;
    const std::string names = flag.names;
    CLI::Option* const single = app.get_option(names.substr(0, names.find(',')));
    const std::string help = single->get_description() + "; a list measures with each";
    const std::string type = single->get_type_name();
    app.remove_option(single);
    command_line::AddValue(app, names, type, help,
                           [options, i](const std::string& text) -> absl::Status {
                             ListedFlag& listed = options->listed[i];
                             listed.values = absl::StrSplit(text, ',');
                             for (const std::string& value : listed.values) {
                               ModelOptions checked;
                               const absl::Status set = SetModelFlag(*listed.flag, value, &checked);
                               // The parser names the flag, too.
                               if (!set.ok())
                                 return InvalidArgument("%s", std::string(set.message()).substr(set.message().find('\'')));
                             }
                             return absl::OkStatus();
                           })
        ->group(flag.group)
        ->excludes(app.get_option("--server"));
  }
}

}  // namespace

Command AddBench(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  options->model.AddWithServer(app, options->server, "measure the coordinator at this address instead of starting one");
  app.remove_option(app.get_option("--parallel"));  // one request at a time is measured
  AddListedFlags(app, options);
  AddText(app, "-p,--n-prompt", options->prompts, "prompt lengths: 512,2048 (default 512)");
  AddText(app, "-n,--n-gen", options->generated,
          "tokens to generate: 128,256 (default 32 behind each prompt; 128 in llama-bench's tests)");
  AddInteger(app, "-r,--repetitions", options->repetitions, {.min = 1, .max = 100},
             "runs of each length (default 3); the table shows the median, llama-bench's tests mean and deviation");
  AddSwitch(app, "--sweep", options->sweep, "fill the context (-c) in steps of the first length");
  AddSwitch(app, "--cold", options->cold, "empty the workers' expert slots before every prompt");
  AddSeed(app, "--seed", options->seed, "seed of the random prompts (default 1; -1: a random one)");
  AddSwitch(app, "--json", options->json, "one JSON object a line instead of the table");
  const char* const tests = "Tests of llama-bench: each -p (pp), each -n (tg) and each -pg alone, without limits";
  AddChoice(app, "-o,--output", options->output, {"md", "csv", "json", "jsonl"}, "llama-bench's tests in this format")
      ->group(tests);
  AddTexts(app, "--pg", options->pairs, "a prompt and tokens behind it in one test: 512,128; may be given several times")
      ->group(tests);
  AddText(app, "-d,--n-depth", options->depths, "tokens that are cached before each test: 0,4096 (default 0)")->group(tests);
  app.footer(Examples({"ferry bench -m model.gguf -p 512,2048,4096 -n 64",
                       "ferry bench -m model.gguf -p 512,2048 -n 128,256 -d 0,4096 -ub 512,2048 -o md",
                       "ferry bench -m model.gguf -c 16384 -p 1024 --sweep",
                       "ferry bench -m model.gguf -p 2048 --vram-experts 4GiB --cold"}));
  return [options]() -> absl::Status {
    if (options->server.empty() == options->model.model.empty())
      return InvalidArgument("give -m FILE, or --server ADDR of a running coordinator");
    return RunBench(*options);
  };
}

}  // namespace ferry
