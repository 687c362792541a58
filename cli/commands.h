#pragma once

// The commands of `ferry`. Each adds its flags to its own subcommand and returns the function that runs it, whose status becomes
// the exit code. Standard output is for the result only.

#include <CLI/CLI.hpp>
#include <functional>

#include "common/status.h"

namespace ferry {

using Command = std::function<absl::Status()>;

Command AddServe(CLI::App& app);
Command AddGenerate(CLI::App& app);
Command AddChat(CLI::App& app);
Command AddScore(CLI::App& app);
Command AddBench(CLI::App& app);
Command AddInspect(CLI::App& app);
Command AddPlan(CLI::App& app);
Command AddStatus(CLI::App& app);
Command AddTokenize(CLI::App& app);
Command AddDetokenize(CLI::App& app);
Command AddMakeModel(CLI::App& app);
Command AddClusterInit(CLI::App& app);
Command AddClusterToken(CLI::App& app);
Command AddJoin(CLI::App& app);
Command AddApiKey(CLI::App& app);
Command AddCompletion(CLI::App& app);

// The flags and defaults in one text behind the options of each `--help`.
std::string Examples(std::initializer_list<const char*> lines);

}  // namespace ferry
