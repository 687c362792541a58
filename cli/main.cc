// `ferry`: one binary, its commands are the files beside this one.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/ferry_program.h"
#include "cli/foreign_flags.h"
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
  const std::unique_ptr<ferry::FerryProgram> program = ferry::MakeFerry(FERRY_VERSION);
  const std::vector<std::string> typed =
      ferry::WithHelpAsFlag(*program, std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
  ferry::Dialect dialect = {.foreign = ferry::ForeignFlags(), .environment = true};
  if (const std::optional<int> code = ferry::ParseCommandLine(program->app, typed, &dialect)) return *code;
  ferry::InitLog("ferry", "info");
  for (const auto& [command, run] : program->commands) {
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
