// How commands end that cannot go on, and what they leave behind.

#include <gtest/gtest.h>
#include <signal.h>

#include "absl/time/clock.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kModel = " -m " + kDemoModel + " ";
const std::string kGenerate = "generate --backend cpu -p Once -n 3 </dev/null" + kModel;

size_t FoldersIn(const std::filesystem::path& folder) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    count += entry.path().filename().string().starts_with("ferry");
  }
  return count;
}

TEST(Endings, AFolderForTemporaryFilesThatIsNoneIsSaid) {
  for (const char* folder : {"/nonexistent", "/etc/passwd", "/proc"}) {
    const Output output = Ferry(kGenerate, std::string("TMPDIR=") + folder);
    EXPECT_EQ(output.exit_code, 1) << folder;
    EXPECT_THAT(output.err, HasSubstr(std::string("cannot make a folder in ") + folder));
    EXPECT_THAT(output.err, Not(HasSubstr("terminate"))) << folder;
  }
}

TEST(Endings, AFolderWhereAFileIsReadIsSaid) {
  for (const char* const arguments :
       {"generate --backend cpu -n 3 -f /tmp", "generate --backend cpu -n 3 --ids /tmp", "tokenize -f /tmp", "detokenize -f /tmp",
        "score --backend cpu -f /tmp", "score --backend cpu --ids /tmp"}) {
    const Output output = Ferry(std::string(arguments) + kModel);
    EXPECT_EQ(output.exit_code, 1) << arguments;
    EXPECT_THAT(output.err, HasSubstr("cannot read '/tmp': Is a directory")) << arguments;
  }
  EXPECT_EQ(Ferry("inspect -m /tmp").exit_code, 2);
}

TEST(Endings, TooFewDescriptorsAreSaid) {
  for (const int descriptors : {4, 8, 12, 16}) {
    const Output output = Ferry(kGenerate, absl::StrFormat("bash -c 'ulimit -n %d; exec timeout 60 \"$@\"' run", descriptors));
    EXPECT_THAT(output.exit_code, AnyOf(1, 2)) << descriptors << ": " << output.err;
    EXPECT_THAT(output.err, HasSubstr("raise the limit (ulimit -n)")) << descriptors;
  }
}

TEST(Endings, TooManyThreadsAreRefusedAtOnce) {
  const Output output = Ferry("generate --backend cpu -p x -n 3 -t 1000" + kModel, "timeout 30");
  EXPECT_EQ(output.exit_code, 2);
  EXPECT_THAT(output.err, HasSubstr("-t is 1000, want at most"));
}

TEST(Endings, NoFolderStaysAfterASignal) {
  const TestFolder folder;
  for (const char* signal : {"TERM", "HUP", "QUIT", "USR1", "SEGV"}) {
    for (const char* seconds : {"0.1", "0.7"}) {
      Ferry("serve --backend cpu --port 0 </dev/null >/dev/null" + kModel,
            absl::StrFormat("TMPDIR=%s timeout -s %s %s", folder.path().string(), signal, seconds));
    }
    EXPECT_EQ(FoldersIn(folder.path()), 0u) << signal;
  }
}

TEST(Endings, WhatAKilledProcessLeavesGoesWithTheNextStart) {
  const TestFolder folder;
  const std::string left = folder.File("ferry-run-killed");
  std::filesystem::create_directory(left);
  std::ofstream(left + "/port") << "1";
  EXPECT_EQ(Ferry(kGenerate, "TMPDIR=" + folder.path().string()).exit_code, 0);
  EXPECT_EQ(FoldersIn(folder.path()), 0u);
}

TEST(Endings, ACoordinatorThatServesNothingIsNotWaitedForForEver) {
  const TestFolder folder;
  const std::string port_file = folder.File("port");
  const std::string start =
      BinaryBeside("ferry-coordinator") + kModel + "--port 0 --workers 1 --port-file " + port_file + " >/dev/null 2>&1 & echo $!";
  FILE* const pipe = popen(start.c_str(), "r");
  int coordinator = 0;
  ASSERT_EQ(fscanf(pipe, "%d", &coordinator), 1);
  for (int i = 0; i < 600 && !std::filesystem::exists(port_file); ++i) absl::SleepFor(absl::Milliseconds(100));
  int port = 0;
  std::ifstream(port_file) >> port;
  const Output output = Ferry(absl::StrFormat("generate -p Once -n 3 --server 127.0.0.1:%d </dev/null", port), "timeout 100");
  kill(coordinator, SIGTERM);
  pclose(pipe);
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, HasSubstr("waiting for the coordinator at 127.0.0.1"));
  EXPECT_THAT(output.err, HasSubstr("0 of 1 workers ready"));
}

TEST(Endings, NobodyAtAnAddressIsSaid) {
  const Output none = Ferry("generate -p x --server 127.0.0.1:1 </dev/null", "timeout 60");
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, HasSubstr("no answer from a Ferry coordinator at 127.0.0.1:1"));
  EXPECT_THAT(Ferry("status --server http://127.0.0.1:8090").err, HasSubstr("begins with http://"));
  const Output unknown = Ferry("status --server no-such-host.invalid", "timeout 60");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("no-such-host.invalid"));
}

TEST(Endings, RunningRequestsGetTheTimeThatServeWasGiven) {
  const TestFolder folder;
  const std::string log = folder.File("log");
  const std::string ferry = BinaryBeside("ferry");
  const std::string script = ferry + " serve --backend cpu --port 18937 --drain-seconds 1 -c 4096 -np 1" + kModel + " >" + log +
                             " 2>&1 </dev/null & S=$!; for i in $(seq 600); do grep -q 'serving on' " + log +
                             " && break; sleep 0.1; done; " + ferry +
                             " generate --server 127.0.0.1:18937 -p Once -n 4000 --ignore-eos </dev/null >/dev/null 2>" +
                             folder.File("err") + " & sleep 1; kill -INT $S; wait $S; wait";
  const absl::Time start = absl::Now();
  std::ofstream(folder.File("script")) << script;
  ASSERT_NE(system(("bash " + folder.File("script")).c_str()), -1);
  std::ifstream file(log);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(text, HasSubstr("the drain timeout is over")) << absl::FormatDuration(absl::Now() - start);
}

}  // namespace
}  // namespace ferry
