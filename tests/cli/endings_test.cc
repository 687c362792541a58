// How commands end that cannot go on, and what they leave behind.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kGenerate = "generate --backend cpu -p Once -n 3 </dev/null" + kOfDemoModel;

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
  const Output longer = Ferry(kGenerate, "TMPDIR=/" + std::string(100, 'a'));
  EXPECT_EQ(longer.exit_code, 1);
  EXPECT_THAT(longer.err, HasSubstr("set TMPDIR to a shorter path"));
}

TEST(Endings, ARelativeFolderForTemporaryFilesWillDo) {
  const Output output = Ferry(kGenerate, "cd " + ::testing::TempDir() + " && TMPDIR=.");
  EXPECT_EQ(output.exit_code, 0) << output.err;
}

TEST(Endings, AFolderWhereAFileIsReadIsSaid) {
  for (const char* const arguments :
       {"generate --backend cpu -n 3 -f /tmp", "generate --backend cpu -n 3 --ids /tmp", "tokenize -f /tmp", "detokenize -f /tmp",
        "score --backend cpu -f /tmp", "score --backend cpu --ids /tmp"}) {
    const Output output = Ferry(std::string(arguments) + kOfDemoModel);
    EXPECT_EQ(output.exit_code, 1) << arguments;
    EXPECT_THAT(output.err, HasSubstr("cannot read '/tmp': Is a directory")) << arguments;
  }
  EXPECT_EQ(Ferry("inspect -m /tmp").exit_code, 2);
}

TEST(Endings, TooFewDescriptorsAreSaid) {
  // Descriptors that the test itself was started with are closed, so that the loader has what the limit allows.
  constexpr char kWith[] = "bash -c 'exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; ulimit -n %d; exec timeout 60 \"$@\"' run";
  for (const int descriptors : {4, 8, 12, 16}) {
    const Output output = Ferry(kGenerate, absl::StrFormat(kWith, descriptors));
    EXPECT_THAT(output.exit_code, AnyOf(1, 2)) << descriptors << ": " << output.err;
    EXPECT_THAT(output.err, HasSubstr("raise the limit (ulimit -n)")) << descriptors;
  }
}

TEST(Endings, TooManyThreadsAreRefusedAtOnce) {
  const Output output = Ferry("generate --backend cpu -p x -n 3 -t 1000" + kOfDemoModel, "timeout 30");
  EXPECT_EQ(output.exit_code, 2);
  EXPECT_THAT(output.err, HasSubstr("-t is 1000, want at most"));
}

TEST(Endings, NoFolderStaysAfterASignal) {
  const TestFolder folder;
  for (const char* signal : {"TERM", "HUP", "QUIT", "USR1", "SEGV"}) {
    for (const char* seconds : {"0.1", "0.7"}) {
      Ferry("serve --backend cpu --port 0 </dev/null >/dev/null" + kOfDemoModel,
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

TEST(Endings, NoFolderOfACoordinatorsSocketStays) {
  const TestFolder folder;
  const std::string variables = "XDG_RUNTIME_DIR= TMPDIR=" + folder.path().string();
  const auto run = [&](const std::string& signal, const char* seconds) {
    const std::string command = variables + " timeout -s " + signal + " " + seconds + " " + BinaryBeside("ferry-coordinator") +
                                kOfDemoModel + "--port 0 --workers 1 </dev/null >/dev/null 2>&1";
    ASSERT_NE(system(command.c_str()), -1);
  };
  for (const char* const signal : {"TERM", "HUP", "QUIT", "USR1", "SEGV"}) {
    for (const char* const seconds : {"0.1", "1"}) run(signal, seconds);
    EXPECT_EQ(FoldersIn(folder.path()), 0u) << signal;
  }
  for (int i = 0; i < 100 && FoldersIn(folder.path()) == 0; ++i) run("KILL", "1");
  EXPECT_EQ(FoldersIn(folder.path()), 1u) << "nothing removes it at once";
  run("TERM", "1");
  EXPECT_EQ(FoldersIn(folder.path()), 0u) << "the next start does";
}

// A file of tests/cli/preload, or empty where a sanitizer takes its place.
std::string Preloaded(const std::string& library) {
  const std::string path = BinaryBeside(library + ".so");
  return std::filesystem::exists(path) ? "LD_PRELOAD=" + path : "";
}

TEST(Endings, NoLimitOfThreadsEndsInAnAbortOrAHang) {
  const std::string preload = Preloaded("few_threads");
  if (preload.empty()) GTEST_SKIP() << "a sanitizer is where the limit would be";
  const auto ends = [&](const char* program, int threads) {
    const Output output = Ferry(kGenerate + "-t 2", absl::StrFormat("%s FERRY_TEST_PROGRAM=%s FERRY_TEST_THREADS=%d timeout 60",
                                                                    preload, program, threads));
    EXPECT_THAT(output.exit_code, AnyOf(0, 1, 2)) << program << " " << threads << ": " << output.err;
    EXPECT_THAT(output.err, Not(AnyOf(HasSubstr("terminate called"), HasSubstr("killed by signal"))))
        << program << " " << threads;
    if (output.exit_code != 0) {
      EXPECT_THAT(output.err, HasSubstr("thread")) << program << " " << threads;
    }
    return output.exit_code;
  };
  // On two cores a coordinator has up to 34 threads, and a worker 18.
  for (const int threads : {1, 20, 33, 34, 35, 37}) ends("ferry-coordinator", threads);
  for (const int threads : {1, 12, 17, 18, 19, 30}) ends("ferry-worker", threads);
  EXPECT_NE(ends("ferry", 20), 0);
  EXPECT_NE(ends("ferry-coordinator", 10), 0);
  EXPECT_EQ(ends("ferry-coordinator", 1000), 0);
}

TEST(Endings, AJumpingDateEndsAndProlongsNothing) {
  const std::string preload = Preloaded("jumping_date");
  if (preload.empty()) GTEST_SKIP() << "a sanitizer is where the date would be moved";
  const std::string generate = "generate --backend cpu --workers 2 --temp 0 -p Once -n 20 </dev/null" + kOfDemoModel;
  const Output plain = Ferry(generate), jumping = Ferry(generate, preload + " timeout 100");
  EXPECT_EQ(jumping.exit_code, 0) << jumping.err;
  EXPECT_EQ(jumping.out, plain.out);
}

TEST(Endings, AFileThatIsNoneDoesNotHoldACommandUp) {
  const TestFolder folder;
  ASSERT_EQ(mkfifo(folder.File("pipe").c_str(), 0600), 0);
  for (const char* const flag : {"--grammar-file ", "-j "}) {
    for (const std::string& file : {folder.path().string(), folder.File("pipe"), std::string("/dev/zero"), folder.File("none")}) {
      const Output output = Ferry(kGenerate + flag + file, "timeout 60");
      EXPECT_THAT(output.exit_code, AnyOf(1, 2)) << flag << file << ": " << output.err;
      EXPECT_THAT(output.err, HasSubstr("error: ")) << flag << file;
    }
  }
  const Output output = Ferry("serve --backend cpu --port 0 --http-port 0 --tls-cert " + folder.File("pipe") + " --tls-key " +
                                  folder.File("pipe") + kOfDemoModel + "</dev/null",
                              "timeout 60");
  EXPECT_THAT(output.exit_code, AnyOf(1, 2)) << output.err;
}

TEST(Endings, AFileWithoutACertificateIsSaid) {
  const TestFolder folder;
  const std::string text = folder.File("text");
  std::ofstream(text) << "no certificate";
  const std::string serve = "serve --backend cpu --port 0 " + kOfDemoModel + "--tls-cert " + text + " --tls-key " + text;
  for (const char* const http : {" --http-port 0", ""}) {
    const Output output = Ferry(serve + http + " </dev/null", "timeout 60");
    EXPECT_EQ(output.exit_code, 1) << output.err;
    EXPECT_THAT(output.err, HasSubstr("the file of the certificate has none in PEM"));
  }
  for (const char* const command : {"generate -p x --server 127.0.0.1:1", "status"}) {
    const Output output = Ferry(command, "FERRY_TLS_CA=" + text);
    EXPECT_EQ(output.exit_code, 2) << output.err;
    EXPECT_THAT(output.err, HasSubstr("FERRY_TLS_CA: '" + text + "' has no certificate"));
  }
  EXPECT_EQ(RunProgramBeside("ferry-gateway", "--listen 127.0.0.1:0", "FERRY_TLS_CA=" + text + " timeout 20").exit_code, 2);
}

TEST(Endings, ACoordinatorThatServesNothingIsNotWaitedForForEver) {
  const TestFolder folder;
  const std::string port_file = folder.File("port");
  const std::string start = BinaryBeside("ferry-coordinator") + kOfDemoModel + "--port 0 --workers 1 --port-file " + port_file +
                            " >/dev/null 2>&1 & echo $!";
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
  const std::string no_name(64, 'a');  // a label of a name has 63 letters at most, so nobody is asked
  const Output unknown = Ferry("status --server " + no_name, "timeout 60");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("there is no host '" + no_name));
}

TEST(Endings, AKeyThatNoServerCanBeToldIsRefused) {
  for (const char* const key : {"'\xff'", "'a b'", "'a\nb'"}) {
    for (const char* const command : {"generate -p x --server 127.0.0.1:1", "status", "chat --server http://127.0.0.1:1"}) {
      const Output output = Ferry(command, std::string("echo hi | FERRY_API_KEY=") + key);
      EXPECT_EQ(output.exit_code, 2) << command << ": " << output.err;
      EXPECT_THAT(output.err, HasSubstr("FERRY_API_KEY has")) << command;
    }
  }
}

TEST(Endings, RunningRequestsGetTheTimeThatServeWasGiven) {
  const TestFolder folder;
  const std::string log = folder.File("log");
  const std::string ferry = BinaryBeside("ferry");
  const std::string script = ferry + " serve --backend cpu --port 18937 --drain-seconds 1 -c 4096 -np 1" + kOfDemoModel + " >" +
                             log + " 2>&1 </dev/null & S=$!; for i in $(seq 600); do grep -q 'serving on' " + log +
                             " && break; sleep 0.1; done; " + ferry +
                             " generate --server 127.0.0.1:18937 -p Once -n 4000 --ignore-eos </dev/null >/dev/null 2>" +
                             folder.File("err") + " & sleep 1; kill -INT $S; wait $S; wait";
  const Stopwatch start;
  std::ofstream(folder.File("script")) << script;
  ASSERT_NE(system(("bash " + folder.File("script")).c_str()), -1);
  std::ifstream file(log);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(text, HasSubstr("the drain timeout is over")) << absl::FormatDuration(start.Elapsed());
}

}  // namespace
}  // namespace ferry
