// The binary itself: what goes to which stream, and exit codes.

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/prompt.h"
#include "tests/testing/own_cache.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kDemoModel = SourcePath("models/demo-moe.gguf");

struct Output {
  int exit_code = -1;
  std::string out, err;
};

// Runs `ferry`, which lies beside this test, through the shell.
Output Ferry(const std::string& arguments) {
  static const OwnCache cache;
  const std::string binary = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "ferry";
  const std::string err_file = ::testing::TempDir() + "/ferry-stderr-" + std::to_string(getpid());
  FILE* const pipe = popen((binary + " " + arguments + " 2>" + err_file).c_str(), "r");
  Output output;
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output.out.append(buffer.data(), n);
  const int status = pclose(pipe);
  output.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  std::ifstream err(err_file);
  output.err.assign(std::istreambuf_iterator<char>(err), {});
  std::filesystem::remove(err_file);
  return output;
}

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
      Ferry(std::string("bench --json --cold --backend cpu --vram-experts 4MiB -p 64 -n 4 -r 1 -m ") + kDemoModel);
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

TEST(CommandLine, PlanMeasuresWhatNobodyKept) {
  const Output plan = Ferry(std::string("plan --json --probe --backend cpu --vram-experts 1MiB -p 64 -m ") + kDemoModel);
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const nlohmann::json predicted = nlohmann::json::parse(plan.out);
  EXPECT_THAT(predicted["rates_source"].get<std::string>(), HasSubstr("measured now"));
  EXPECT_GT(predicted["rates"]["workers"][0]["link_alone"], 0);
  EXPECT_GT(predicted["decode_tokens_per_second"], 0);
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
