// `ferry`: one binary, its commands are the files beside this one.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "common/command_line.h"
#include "common/log.h"
#include "common/program.h"

namespace {

// What a server said keeps the name by which docs/operations.md has it; a wrong command line needs none.
std::string CodeOf(const absl::Status& status) {
  const bool of_server = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsResourceExhausted(status);
  return of_server ? absl::StatusCodeToString(status.code()) + ": " : "";
}

// Exit codes: 0 success, 1 it failed, 2 the command line is wrong, 130 interrupted.
int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsCancelled(status)) return 130;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Ferry runs mixture-of-experts language models that do not fit in GPU memory: experts stay in host memory, and only\n"
      "those that a batch activates are ferried to a GPU.",
      "ferry");
  app.require_subcommand(1);
  app.set_version_flag("--version", FERRY_VERSION);
  app.footer("Try: ferry generate -m models/demo-moe.gguf --workers 2 -p \"Once upon a time\"");

  std::vector<std::pair<CLI::App*, ferry::Command>> commands;
  const auto add = [&](const char* name, const char* what, ferry::Command (*setup)(CLI::App&)) {
    CLI::App* const command = app.add_subcommand(name, what);
    commands.emplace_back(command, setup(*command));
  };
  add("serve", "start a coordinator and its workers and keep them running", ferry::AddServe);
  add("generate", "continue a prompt", ferry::AddGenerate);
  add("score", "log-probabilities and perplexity of a text", ferry::AddScore);
  add("bench", "measure prefill and decode against the machine's limits", ferry::AddBench);
  add("inspect", "what a model file holds", ferry::AddInspect);
  add("plan", "what would go where and how fast it would be, without loading", ferry::AddPlan);
  add("status", "workers, caches and rates of a running server", ferry::AddStatus);
  add("tokenize", "text to token ids, from a file alone", ferry::AddTokenize);
  add("detokenize", "token ids to text, from a file alone", ferry::AddDetokenize);
  add("make-model", "write a model of any gpt-oss shape with random weights, for benchmarks", ferry::AddMakeModel);
  add("cluster-init", "make the certificates of a cluster of several hosts", ferry::AddClusterInit);
  add("cluster-token", "a one-time token for a host that joins the cluster", ferry::AddClusterToken);
  add("api-key", "make a key for the API", ferry::AddApiKey);
  add("join", "fetch this host's certificate with a token", ferry::AddJoin);

  if (const std::optional<int> code = ferry::ParseCommandLine(app, argc, argv)) return *code;
  ferry::InitLog("ferry", "info");
  for (const auto& [command, run] : commands) {
    if (!command->parsed()) continue;
    absl::Status status = run();
    if (status.ok()) status = ferry::FlushOutput();
    if (!status.ok() && !ferry::OutputReaderIsGone())
      std::fprintf(stderr, "error: %s%s\n", CodeOf(status).c_str(), std::string(status.message()).c_str());
    return ExitCode(status);
  }
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry", [&] { return Main(argc, argv); });
}
