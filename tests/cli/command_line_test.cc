// The binary itself: what goes to which stream, and exit codes.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_split.h"
#include "cli/bench_runs.h"
#include "cli/client.h"
#include "cli/prompt.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CommandLine, TokenizesAndBackFromAFileAlone) {
  const Output ids = Ferry(std::string("tokenize -m ") + kDemoModel + " --ids --no-bos -p 'Hello, world!'");
  EXPECT_EQ(ids.exit_code, 0) << ids.err;
  EXPECT_EQ(ids.out, "39 489 78 11 1022 0\n");
  const Output text = Ferry(std::string("detokenize -m ") + kDemoModel + " -p '39 489 78 11 1022 0'");
  EXPECT_EQ(text.out, "Hello, world!");
}

TEST(CommandLine, InspectsAsJson) {
  const Output output = Ferry(std::string("inspect --json -m ") + kDemoModel);
  ASSERT_EQ(output.exit_code, 0) << output.err;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["model"]["experts"], 32);
  EXPECT_EQ(json["layers"].size(), 6u);
  EXPECT_EQ(json["layers"][0]["gate_type"], "MXFP4");
}

TEST(CommandLine, PutsTheCompletionAloneOnStandardOutput) {
  const Output output = Ferry(std::string("generate -m ") + kDemoModel +
                              " --backend cpu --workers 2 -n 8 --temp 0 -p 'Once upon a time there was a'");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(output.out, " great deal of talk, and the whole\n");
  EXPECT_THAT(output.err, HasSubstr("t/s"));
}

TEST(CommandLine, ScoresAsJson) {
  const Output output = Ferry(std::string("score --json -m ") + kDemoModel +
                              " --backend cpu -p 'It was the best of times, it was the worst of times'");
  ASSERT_EQ(output.exit_code, 0) << output.err;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_GT(json["logprobs"].size(), 5u);
  EXPECT_GT(json["perplexity"], 1.0);
}

TEST(CommandLine, ScoresTheSecondHalfOfEachChunk) {
  const TestFolder folder;
  std::ofstream(folder.File("ids"))
      << "39 489 78 11 1022 0 39 489 78 11 1022 0 39 489 78 11 1022 5 6 7";  // two chunks and a rest
  const std::string score = std::string("score --json --backend cpu -m ") + kDemoModel + " --ids " + folder.File("ids");
  const Output chunks = Ferry(score + " --chunks -1 --chunk-size 8");
  ASSERT_EQ(chunks.exit_code, 0) << chunks.err;
  double sum = 0;  // 4088 begins a text
  for (const char* chunk : {"4088 489 78 11 1022 0 39 489", "4088 11 1022 0 39 489 78 11"}) {
    std::ofstream(folder.File("chunk")) << chunk;
    const Output alone = Ferry(std::string("score --json --backend cpu -m ") + kDemoModel + " --ids " + folder.File("chunk"));
    const nlohmann::json logprobs = nlohmann::json::parse(alone.out)["logprobs"];
    for (size_t token = 5; token < 8; ++token) sum += logprobs[token - 1].get<double>();
  }
  const nlohmann::json json = nlohmann::json::parse(chunks.out);
  EXPECT_EQ(json["tokens"], 6);
  EXPECT_NEAR(json["perplexity"].get<double>(), std::exp(-sum / 6), 1e-6 * std::exp(-sum / 6));
  EXPECT_EQ(json["after_chunk"].size(), 2u);
  EXPECT_GT(json["standard_error"], 0);
  EXPECT_EQ(nlohmann::json::parse(Ferry(score + " --chunks 1 --chunk-size 8").out)["tokens"], 3);
  EXPECT_THAT(Ferry(score + " --chunks 1").err, HasSubstr("fewer than a chunk's 512"));
  EXPECT_EQ(Ferry(score + " --chunks 1 --top 3").exit_code, 2);
}

TEST(CommandLine, MakesModelsThatInspect) {
  const std::string path = ::testing::TempDir() + "/made-" + std::to_string(getpid()) + ".gguf";
  EXPECT_EQ(Ferry("make-model " + path + " --layers 3 --experts 16").exit_code, 0);
  const Output output = Ferry("inspect --json -m " + path);
  std::filesystem::remove(path);
  ASSERT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(nlohmann::json::parse(output.out)["model"]["experts"], 16);
}

TEST(CommandLine, SaysWhatIsWrongAndExitsWithTwo) {
  const auto wrong = [](const std::string& arguments, const char* message) {
    const Output output = Ferry(arguments);
    EXPECT_EQ(output.exit_code, 2) << arguments;
    EXPECT_EQ(output.out, "") << arguments;
    EXPECT_THAT(output.err, HasSubstr(message)) << arguments;
  };
  wrong("generate -p hello", "give -m FILE");
  wrong("frobnicate", "frobnicate");
  wrong("inspect -m " + SourcePath("README.md"), "GGUF");
  wrong(std::string("generate -m ") + kDemoModel + " -p x -ctk q4_0", "q4_0");
}

TEST(CommandLine, ANumberOutOfRangeIsRefusedByEveryCommand) {
  const std::string model = std::string(" -m ") + kDemoModel + " ";
  for (const std::string& arguments : {"generate" + model + "-p x -c -5",
                                       "generate" + model + "-p x -b -3",
                                       "generate" + model + "-p x -t -5",
                                       "generate" + model + "-p x -n 4294967296",
                                       "generate" + model + "-p x -n 0x10",
                                       "generate" + model + "-p x -s -2",
                                       "generate" + model + "-p x --temp nan",
                                       "generate" + model + "-p x --top-k -2",
                                       "serve" + model + "--port 65536",
                                       "serve" + model + "--http-port 0x10",
                                       "serve" + model + "--drain-seconds -1",
                                       "serve" + model + "--vram-experts 4QiB",
                                       "score" + model + "-p x --top 21",
                                       "bench" + model + "-r 0",
                                       "bench" + model + "-p 512,-1",
                                       "bench" + model + "-n 1,x",
                                       "bench" + model + "-pg 512",
                                       "bench" + model + "-d -1",
                                       "bench" + model + "-o sql",
                                       "bench" + model + "-ub 512,x",
                                       "plan" + model + "-p 0",
                                       "plan" + model + "--link-rate inf",
                                       "plan" + model + "--host-rate 80Gb/h",
                                       "plan" + model + "--gpu-memory 24GiB,none",
                                       "plan" + model + "--gpu-memory 1GiB,1GiB --workers 3",
                                       "plan" + model + "--gpus 0x0 --backend cpu",
                                       std::string("make-model /nonexistent/m.gguf --layers -5"),
                                       std::string("make-model /nonexistent/m.gguf --heads 1e3")}) {
    const Output output = Ferry(arguments);
    EXPECT_EQ(output.exit_code, 2) << arguments;
    EXPECT_EQ(output.out, "") << arguments;
    EXPECT_THAT(output.err, HasSubstr("want ")) << arguments;
  }
}

TEST(CommandLine, EveryProgramReadsItsFlagsAlike) {
  const std::pair<const char*, const char*> kNumbers[] = {{"ferry-coordinator", "-m x --port "},
                                                          {"ferry-worker", "--coordinator x --threads "},
                                                          {"ferry-gateway", "--drain-timeout "}};
  for (const auto& [program, flags] : kNumbers) {
    for (const char* const number : {"0x10", "' 5'", "99999999999999999999", "nan", "''"}) {
      const Output output = RunProgramBeside(program, flags + std::string(number), "timeout 20");
      EXPECT_EQ(output.exit_code, 2) << program << " " << number;
      EXPECT_THAT(output.err, HasSubstr("want ")) << program << " " << number;
    }
  }
}

TEST(CommandLine, TextArrivesAsItWasTyped) {
  const auto ids = [](const std::string& text) {
    return Ferry(std::string("tokenize --ids --no-bos -m ") + kDemoModel + " -p '" + text + "'").out;
  };
  for (const char* text : {"-np", "-ub", "-ot", "-ctk", "-ctv", "--ids", "[a,b]"}) {
    const Output back = Ferry(std::string("detokenize -m ") + kDemoModel + " -p '" + ids(text) + "'");
    EXPECT_EQ(back.out, text);
  }
  EXPECT_EQ(ids(""), "\n") << "an empty text is not standard input";
}

TEST(CommandLine, ABracketedStopStringIsOneText) {
  const std::string generate =
      std::string("generate --backend cpu -n 12 --temp 0 -p 'Once upon a time there was a' -m ") + kDemoModel;
  const std::string whole = Ferry(generate).out;
  ASSERT_THAT(whole, HasSubstr("whole"));
  EXPECT_EQ(Ferry(generate + " --stop '[whole]' --stop '[talk,whole]'").out, whole);
  EXPECT_EQ(Ferry(generate + " --stop whole").out, whole.substr(0, whole.find("whole")) + "\n");
}

TEST(CommandLine, WhatMustBeUtf8IsRefusedByTheFlagsName) {
  const TestFolder folder;
  std::ofstream(folder.File("latin1")) << "root ::= \"\xe9\"";
  const std::string model = std::string(" -m ") + kDemoModel;
  const std::pair<std::string, const char*> refused[] = {
      {"generate -p x --grammar '\xe9'", "--grammar is not UTF-8"},
      {"generate -p x --grammar-file " + folder.File("latin1"), "--grammar-file is not UTF-8"},
      {"generate -p x --regex '\xe9'", "--regex is not UTF-8"},
      {"generate -p x -j '{\"const\": \"\xe9\"}'", "--json-schema is not UTF-8"},
      {"chat --stop '\xe9'", "--stop is not UTF-8"},
      {"chat --dry-multiplier 1 --dry-sequence-breaker '\xe9'", "--dry-sequence-breaker is not UTF-8"}};
  for (const auto& [arguments, reason] : refused) {
    const Output output = Ferry(arguments + model + " </dev/null");
    EXPECT_EQ(output.exit_code, 2) << arguments;
    EXPECT_THAT(output.err, HasSubstr(reason)) << arguments;
  }
}

TEST(CommandLine, NamesInAModelFileDoNotSteerTheTerminal) {
  const TestFolder folder;
  std::ifstream demo(kDemoModel, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(demo), {});
  const size_t name = bytes.find("demo-moe-30m");
  ASSERT_NE(name, std::string::npos);
  std::ofstream(folder.File("m.gguf"), std::ios::binary) << bytes.replace(name, 12, "\xff\x1b[31m name ");
  const Output output = Ferry("inspect -m " + folder.File("m.gguf"));
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_THAT(output.out, HasSubstr("gpt-oss \\xff\\x1b[31m name :"));
}

TEST(CommandLine, FlagsOfAnExpertHostNeedOne) {
  const Output output = Ferry("join 127.0.0.1:1 --token fj-x --memory 5GiB");
  EXPECT_EQ(output.exit_code, 2);
  EXPECT_THAT(output.err, HasSubstr("--memory requires --experts"));
}

TEST(CommandLine, FailsWithOneWhenAFileIsNotThere) {
  const Output output = Ferry("inspect -m /nonexistent.gguf");
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, HasSubstr("/nonexistent.gguf"));
}

TEST(CommandLine, EndsAtOnceWhenAWorkerCannotRunAsTold) {
  const Output output =
      Ferry(std::string("generate --backend cpu --vram-experts 900TiB -p x -n 4 -m ") + kDemoModel + " --log-level error");
  EXPECT_NE(output.exit_code, 0);
  EXPECT_EQ(output.out, "");
  EXPECT_THAT(output.err, HasSubstr("less with --vram-experts"));
  EXPECT_THAT(output.err, HasSubstr("worker 0 cannot run as it was told to"));
  EXPECT_EQ(output.err.find("RESOURCE_EXHAUSTED"), output.err.rfind("RESOURCE_EXHAUSTED")) << "it is tried once";
}

TEST(CommandLine, BenchSaysWhatPlanPredicts) {
  const Output bench =
      Ferry(std::string("bench --json --cold --keep-rates --backend cpu --vram-experts 4MiB -p 64 -n 4 -r 1 -m ") + kDemoModel);
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  const nlohmann::json measured = nlohmann::json::parse(bench.out);
  EXPECT_EQ(measured["prefill"]["resident"], 0) << "--cold";
  EXPECT_GT(measured["prefill"]["bytes_shipped"], 0);
  EXPECT_GT(measured["plan"]["s_pp"], 0);
  EXPECT_GT(measured["plan"]["s_tg"], 0);
  EXPECT_GT(measured["rates"]["workers"][0]["link_beside_host"], 0);

  const Output plan = Ferry(std::string("plan --json --backend cpu --vram-experts 4MiB -p 64 -b 2048 -m ") + kDemoModel);
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const nlohmann::json predicted = nlohmann::json::parse(plan.out);
  EXPECT_THAT(predicted["rates_source"].get<std::string>(), HasSubstr("kept from a start"));
  EXPECT_EQ(predicted["rates"], measured["rates"]) << "of the start that bench made";
  EXPECT_EQ(predicted["prefill"][0]["tokens_per_second"], measured["plan"]["s_pp"]);
}

TEST(CommandLine, BenchMeasuresNoPromptThatTheCacheHas) {
  ModelOptions options;
  options.model = kDemoModel;
  options.backend = "cpu";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  BenchRunner runner({.seed = 7}, client.get(), /*vocab=*/1000);
  std::vector<std::vector<uint32_t>> prompts(3);
  for (std::vector<uint32_t>& prompt : prompts) ASSERT_OK(runner.Measure(prompt, 40, 0));
  const std::set<uint32_t> firsts = {prompts[0][0], prompts[1][0], prompts[2][0]};
  EXPECT_EQ(firsts.size(), prompts.size()) << "the cache shares beginnings";
}

TEST(CommandLine, BenchRunsTheTestsOfLlamaBench) {
  const std::string bench = std::string("bench --backend cpu -p 16 -n 2,3 -pg 8,2 -d 0,8 -r 2 -m ") + kDemoModel;
  const Output csv = Ferry(bench + " -ub 64,128 -o csv");
  ASSERT_EQ(csv.exit_code, 0) << csv.err;
  const std::vector<std::string> lines = absl::StrSplit(csv.out, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 1 + 2 * 2 * 4) << "two of -ub, two depths, pp, two tg, pg";
  EXPECT_THAT(lines[0], HasSubstr("n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts"));
  EXPECT_THAT(lines[1], HasSubstr("\"64\",\"\",\"f16\",\"f16\",\"16\",\"0\",\"0\""));
  EXPECT_THAT(lines.back(), HasSubstr("\"128\",\"\",\"f16\",\"f16\",\"8\",\"2\",\"8\""));

  const Output json = Ferry(bench + " -o json");
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const nlohmann::json tests = nlohmann::json::parse(json.out);
  ASSERT_EQ(tests.size(), 8);
  for (const nlohmann::json& test : tests) {
    EXPECT_EQ(test["samples_ts"].size(), 2);
    EXPECT_GT(test["avg_ts"], 0);
  }
  EXPECT_THAT(Ferry(bench + " -p 0").out, AllOf(HasSubstr(" tg3 @ d8 |"), HasSubstr(" pp8+tg2 |"), Not(HasSubstr("pp16"))))
      << "without -o the format is md";
}

TEST(CommandLine, PlanMeasuresWhatNobodyKept) {
  const Output plan = Ferry(std::string("plan --json --probe --backend cpu --vram-experts 1MiB -p 64 -m ") + kDemoModel);
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const nlohmann::json predicted = nlohmann::json::parse(plan.out);
  EXPECT_THAT(predicted["rates_source"].get<std::string>(), HasSubstr("measured now"));
  EXPECT_GT(predicted["rates"]["workers"][0]["link_alone"], 0);
  EXPECT_GT(predicted["decode_tokens_per_second"], 0);
}

TEST(CommandLine, PlanSaysWhatAMachineThatIsNotHereWouldGive) {
  const std::string machine =
      " --gpu-memory 8GiB --workers 4 --host-rate 80GB/s --host-flops 2e12 --link-rate 25e9 -c 32k -p 64 ";
  const Output plan = Ferry(std::string("plan --json --host-memory 64GiB") + machine + "-m " + kDemoModel);
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const nlohmann::json predicted = nlohmann::json::parse(plan.out);
  EXPECT_TRUE(predicted["fits"]);
  EXPECT_EQ(predicted["workers"].size(), 4);
  EXPECT_EQ(predicted["rates"]["host"]["read_bytes_per_second"], 80e9);
  EXPECT_EQ(predicted["rates"]["workers"][3]["link_alone"], 25e9);
  ASSERT_EQ(predicted["choices"].size(), 4) << "1, 2 and 4 GPUs, and the processor alone";
  for (const nlohmann::json& choice : predicted["choices"]) {
    EXPECT_GT(choice["prefill_tokens_per_second"], 0);
    EXPECT_GE(choice["seconds"], 0);
    if (choice["command"] == predicted["command"]) continue;
    EXPECT_GE(choice["seconds"], predicted["choices"][0]["seconds"]) << "the command is the quickest one's";
  }
  EXPECT_EQ(predicted["choices"][0]["command"], std::string("ferry serve -m ") + kDemoModel + " -c 32768 --gpus 0");
  EXPECT_EQ(predicted["choices"][3]["command"], std::string("ferry serve -m ") + kDemoModel + " -c 32768 --backend cpu");
}

TEST(CommandLine, PlanSaysWhatIsMissing) {
  const std::string none = std::string(" --host-rate 80GB/s --host-flops 2e12 -m ") + kDemoModel;
  const Output plan = Ferry("plan --json --host-memory 1MiB --gpu-memory 1MiB" + none);
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const nlohmann::json predicted = nlohmann::json::parse(plan.out);
  EXPECT_FALSE(predicted["fits"]);
  ASSERT_EQ(predicted["lacks"].size(), 2);
  EXPECT_EQ(predicted["lacks"][0]["where"], "host memory");
  EXPECT_EQ(predicted["lacks"][0]["missing_bytes"], predicted["arena_bytes"].get<int64_t>() - (1 << 20));
  EXPECT_EQ(predicted["lacks"][1]["where"], "GPU 0");
  EXPECT_FALSE(predicted.contains("command")) << "nothing fits";
  EXPECT_THAT(Ferry("plan --gpu-memory 1MiB" + none).out,
              AllOf(HasSubstr("it does not fit"), HasSubstr("GPU 0 lacks"), HasSubstr("--backend cpu")));
}

TEST(CommandLine, HelpTeaches) {
  const Output output = Ferry("generate --help");
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_THAT(output.out, HasSubstr("Examples:"));
}

TEST(ParseIds, TakesAnySeparators) {
  EXPECT_THAT(*ParseIds("[1, 2,3]\n4"), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(ParseIds("1 -2"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-2")));
  EXPECT_THAT(ParseIds("99999999999"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace ferry
