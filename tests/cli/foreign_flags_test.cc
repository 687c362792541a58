// What people type for other engines, spelling by spelling: testdata/spellings.txt.

#include "cli/foreign_flags.h"

#include <cstdlib>
#include <fstream>
#include <set>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/ferry_program.h"
#include "common/argument_reader.h"
#include "common/command_line.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

struct Spelling {
  std::string kind, command, expected;
  std::vector<std::string> arguments;

  std::string flag() const { return arguments.at(0).substr(0, arguments.at(0).find('=')); }
};

std::vector<Spelling> Spellings() {
  std::ifstream file(SourcePath("tests/cli/testdata/spellings.txt"));
  std::vector<Spelling> spellings;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with('#')) continue;
    const size_t arrow = line.find(" => ");
    std::vector<std::string> words = absl::StrSplit(line.substr(0, arrow), ' ');
    spellings.push_back({.kind = words.at(0),
                         .command = words.at(1),
                         .expected = arrow == std::string::npos ? "" : line.substr(arrow + 4),
                         .arguments = {words.begin() + 2, words.end()}});
  }
  return spellings;
}

struct Reading {
  absl::StatusOr<std::vector<std::string>> plain;  // as CLI11 gets them
  absl::Status parsed;
  std::vector<std::string> notes;
};

// A model is typed, too, unless it is what the arguments say.
Reading Read(const std::string& command, const std::vector<std::string>& arguments) {
  std::vector<std::string> typed = {command, "-m", "first.gguf"};
  typed.insert(typed.end(), arguments.begin(), arguments.end());
  Reading reading;
  {
    const std::unique_ptr<FerryProgram> program = MakeFerry("test");
    Dialect dialect = {.foreign = ForeignFlags(), .environment = false};
    reading.plain = ReadArguments(program->app, typed, &dialect);
  }
  const std::unique_ptr<FerryProgram> program = MakeFerry("test");
  Dialect dialect = {.foreign = ForeignFlags(), .environment = true};
  reading.parsed = ParseArguments(program->app, typed, &dialect);
  reading.notes = dialect.notes;
  return reading;
}

TEST(ForeignFlags, EachSpellingDoesWhatTheTableSays) {
  const std::vector<Spelling> spellings = Spellings();
  ASSERT_GT(spellings.size(), 190u);
  for (const Spelling& spelling : spellings) {
    SCOPED_TRACE(spelling.command + " " + absl::StrJoin(spelling.arguments, " "));
    const Reading reading = Read(spelling.command, spelling.arguments);
    if (spelling.kind == "hint") {
      EXPECT_THAT(reading.parsed, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(spelling.flag())));
      EXPECT_THAT(std::string(reading.parsed.message()), HasSubstr(spelling.expected));
      continue;
    }
    ASSERT_OK(reading.parsed);
    ASSERT_OK(reading.plain);
    const std::string plain = absl::StrJoin(*reading.plain, " "), base = spelling.command + " -m first.gguf";
    if (spelling.kind == "accept") {
      EXPECT_EQ(plain, base) << "nothing is left of it";
      ASSERT_THAT(reading.notes, SizeIs(1));
      EXPECT_THAT(reading.notes[0], StartsWith(spelling.flag() + ": "));
    } else if (spelling.kind == "translate") {
      EXPECT_EQ(plain, base + " " + spelling.expected);
    } else {
      ASSERT_EQ(spelling.kind, "own");
      EXPECT_THAT(reading.notes, IsEmpty());
      EXPECT_THAT(plain, StartsWith(base + " -"));
    }
  }
}

TEST(ForeignFlags, EveryRowIsTestedAndShadowsNoFlagOfFerry) {
  std::set<std::string> typed;
  for (const Spelling& spelling : Spellings()) typed.insert(spelling.flag());
  const std::unique_ptr<FerryProgram> program = MakeFerry("test");
  for (const ForeignFlag& row : ForeignFlags()) {
    for (const absl::string_view entry : absl::StrSplit(row.spellings, ' ')) {
      const std::string spelling(entry);
      EXPECT_TRUE(typed.contains(spelling)) << spelling << " is not in spellings.txt";
      bool reachable = false;
      for (const auto& [command, run] : program->commands) {
        const std::string name = command->get_name();
        if (*row.commands != '\0' && !absl::StrContains(absl::StrCat(" ", row.commands, " "), absl::StrCat(" ", name, " ")))
          continue;
        Dialect without;
        const std::unique_ptr<FerryProgram> fresh = MakeFerry("test");
        reachable = reachable || !ReadArguments(fresh->app, {name, spelling, "x"}, &without).ok();
      }
      EXPECT_TRUE(reachable) << spelling << " is a flag of Ferry itself in every command that the row is for";
    }
  }
}

TEST(ForeignFlags, OfAFlagGivenTwiceTheLastCounts) {
  EXPECT_OK(Read("generate", {"-c", "4096", "--max-model-len", "8192", "-s", "1", "-s", "-1"}).parsed);
}

TEST(ForeignFlags, FlagsThatExcludeEachOtherAreNamed) {
  EXPECT_THAT(Read("generate", {"-p", "a", "-f", "b"}).parsed,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--prompt does not go with --file: give one of them")));
}

TEST(ForeignFlags, ATranslatedFlagNeedsACommandThatHasTheTarget) {
  EXPECT_THAT(
      Read("plan", {"--host", "::1"}).parsed,
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--http-listen in Ferry, which `ferry plan` does not have")));
  EXPECT_THAT(Read("generate", {"-ngl"}).parsed, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-ngl needs a value")));
}

TEST(ForeignFlags, VariablesSetFlagsThatAreNotTyped) {
  const auto tokens = [](const std::string& arguments, const std::string& before) {
    return Ferry(std::string("tokenize --ids ") + arguments, before);
  };
  const std::string model = "FERRY_MODEL=" + kDemoModel;
  EXPECT_EQ(tokens("-p Hello", model).out, tokens("-p Hello -m " + kDemoModel, "").out);
  EXPECT_EQ(tokens("-p Hello -m " + kDemoModel, "FERRY_MODEL=/nonexistent.gguf").exit_code, 0) << "the typed flag counts";
  EXPECT_EQ(tokens("-p Hello", model + " FERRY_NO_BOS=1").out, tokens("--no-bos -p Hello", model).out);
  EXPECT_THAT(Ferry("generate --server 127.0.0.1:1 -p x", model + " FERRY_FILE=x timeout 20").err, Not(HasSubstr("give ")))
      << "a variable is no second choice beside a typed flag that excludes it";
  EXPECT_THAT(Ferry("generate -p x -m x", "FERRY_CTX_SIZE=1x").err, HasSubstr("-c is '1x'"));
  EXPECT_THAT(Ferry("generate -p x -m x", "FERRY_CTX_SIZE=1x").err, HasSubstr("(set by FERRY_CTX_SIZE)"));
  EXPECT_THAT(Ferry("generate -p x", "FERRY_CTX_SIZE=4096 FERRY_SERVER=127.0.0.1:1 timeout 20").err, Not(HasSubstr("give ")))
      << "of a server's address and the size of a server to start the address counts";
  const Output wrong = tokens("-p Hello", model + " FERRY_NO_BOS=maybe");
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("FERRY_NO_BOS is 'maybe'"));
  EXPECT_THAT(Ferry("serve --help").out, HasSubstr("[FERRY_CTX_SIZE]"));
}

TEST(ForeignFlags, HelpAndVersionAreWordsToo) {
  EXPECT_EQ(Ferry("").exit_code, 0);
  EXPECT_THAT(Ferry("").out, HasSubstr("generate"));
  EXPECT_EQ(Ferry("help").out, Ferry("--help").out);
  EXPECT_EQ(Ferry("help serve").out, Ferry("serve --help").out);
  EXPECT_EQ(Ferry("version").out, Ferry("--version").out);
  const Output unknown = Ferry("help frobnicate");
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("frobnicate"));
}

TEST(ForeignFlags, NotesGoToStandardErrorAndTheRunGoesOn) {
  const Output output = Ferry(std::string("tokenize --ids -p 'a' -m ") + kDemoModel + " -ngl 99");
  EXPECT_EQ(output.exit_code, 2) << "tokenize has no GPU layers";
  const Output plan = Ferry(std::string("plan --json --backend cpu -p 64 -ngl 99 -fa on -m ") + kDemoModel);
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_THAT(plan.err, HasSubstr("note: -ngl: "));
  EXPECT_THAT(plan.out, StartsWith("{"));
}

}  // namespace
}  // namespace ferry
