#include "common/command_line.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A program with a flag of each kind.
struct Flags {
  int64_t number = 7, tokens = 0;
  double decimal = 0;
  std::optional<uint64_t> seed = 1;
  std::string text = "before", choice = "red";
  std::optional<std::string> prompt;
  std::vector<std::string> texts;
  bool on = false, off = true;
  std::string word;

  absl::Status Parse(const std::vector<std::string>& arguments) {
    CLI::App app("", "program");
    CLI::App* const command = app.add_subcommand("run", "");
    app.add_subcommand("walk", "");
    app.require_subcommand(1);
    AddInteger(*command, "-n,--number", number, {.min = -1, .max = 100}, "");
    AddInteger(*command, "--ub,--tokens", tokens, {.max = 1 << 20, .automatic = 0, .units = true}, "");
    AddDecimal(*command, "--decimal", decimal, 0, 1, "");
    AddSeed(*command, "-s,--seed", seed, "");
    AddText(*command, "-t,--text", text, "");
    AddText(*command, "-p,--prompt", prompt, "");
    AddTexts(*command, "--stop", texts, "");
    AddChoice(*command, "--choice", choice, {"red", "Green"}, "");
    AddSwitch(*command, "--on", on, "");
    AddSwitch(*command, "--off,!--no-off", off, "");
    AddText(*command, "word", word, "");
    std::vector<std::string> all = {"run"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return ParseArguments(app, all);
  }
};

TEST(CommandLine, AValueArrivesByteForByte) {
  for (const char* value : {"",           "[a,b]", "[a]",  "a,b", "-n",       "--number", "-np", "--",  "++", "{}",
                            "\"quoted\"", "run",   "walk", "%s",  "\xff\xfe", "a=b",      "=",   " a ", "-5", "\n"}) {
    Flags flags;
    ASSERT_OK(flags.Parse({"--stop", value, "-p", value, std::string("--stop=") + value}));
    EXPECT_EQ(flags.prompt, value);
    EXPECT_THAT(flags.texts, ElementsAre(value, value));
    if (*value == '\0') continue;
    ASSERT_OK(flags.Parse({"-t", value}));
    EXPECT_EQ(flags.text, value);
  }
}

TEST(CommandLine, AnEmptyTextIsRefusedWhereItMeansNotGiven) {
  Flags flags;
  EXPECT_THAT(flags.Parse({"-t", ""}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-t is empty, want a text")));
  EXPECT_OK(flags.Parse({"-p", "", "--stop", ""}));
}

TEST(CommandLine, AWordIsNoCommandBehindACommand) {
  Flags flags;
  ASSERT_OK(flags.Parse({"walk"}));
  EXPECT_EQ(flags.word, "walk");
}

TEST(CommandLine, TheLastOfAFlagGivenTwiceCounts) {
  Flags flags;
  ASSERT_OK(flags.Parse({"-n", "1", "--number", "2", "--choice", "green", "--no-off", "--off", "-s", "4", "-s", "-1"}));
  EXPECT_EQ(flags.number, 2);
  EXPECT_EQ(flags.choice, "Green") << "any case, as it is written in the list";
  EXPECT_TRUE(flags.off);
  EXPECT_EQ(flags.seed, std::nullopt) << "-1: random";
}

TEST(CommandLine, WhatIsNotGivenKeepsItsValue) {
  Flags flags;
  ASSERT_OK(flags.Parse({}));
  EXPECT_EQ(flags.number, 7);
  EXPECT_EQ(flags.text, "before");
  EXPECT_EQ(flags.prompt, std::nullopt) << "and an empty prompt is given";
}

TEST(CommandLine, TakesLongFlagsWithOneDashAndBundlesNone) {
  Flags flags;
  ASSERT_OK(flags.Parse({"-ub", "4k", "--decimal=0.5", "-n=3"}));
  EXPECT_EQ(flags.tokens, 4096);
  EXPECT_EQ(flags.decimal, 0.5);
  EXPECT_EQ(flags.number, 3);
  for (const char* bundle : {"-n5", "-np", "-nt", "-ngl"}) {
    EXPECT_THAT(Flags().Parse({bundle, "1"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(bundle))) << bundle;
  }
}

TEST(CommandLine, MinusOneIsAutomaticWhereSomethingIs) {
  Flags flags;
  ASSERT_OK(flags.Parse({"--tokens", "-1", "-n", "-1"}));
  EXPECT_EQ(flags.tokens, 0);
  EXPECT_EQ(flags.number, -1);
}

TEST(CommandLine, RefusesByTheFlagsName) {
  const auto refuses = [](const std::vector<std::string>& arguments, const char* message) {
    EXPECT_THAT(Flags().Parse(arguments), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << arguments[0];
  };
  refuses({"-n", "0x1"}, "-n is '0x1', want a whole number from -1 to 100");
  refuses({"--number", "101"}, "-n is '101'");
  refuses({"--tokens", "-5"}, "-1 for the automatic choice");
  refuses({"--decimal", "nan"}, "--decimal is 'nan'");
  refuses({"-s", "-2"}, "-1 for a random one");
  refuses({"--choice", "blue"}, "--choice is 'blue', want red|Green");
  refuses({"--frob"}, "--frob is not a flag of `program run`");
  refuses({"-n"}, "-n needs a value");
  refuses({"--on=maybe"}, "--on takes no value");
  refuses({"a", "b"}, "'b' is one argument too many");
}

}  // namespace
}  // namespace ferry
