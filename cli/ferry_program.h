#pragma once

// `ferry` with all its commands, before arguments are read. main.cc runs it; its reference and its completions are made of it.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"

namespace ferry {

struct FerryProgram {
  CLI::App app;
  std::vector<std::pair<CLI::App*, Command>> commands;

  FerryProgram();
};
// `version`: "ferry 1.2.3".
std::unique_ptr<FerryProgram> MakeFerry(const std::string& version);

// "ferry help" and "ferry version" are typed for --help and --version, and `ferry help COMMAND` for `ferry COMMAND --help`.
// Returns the arguments in the latter form; `ferry` alone asks for help.
std::vector<std::string> WithHelpAsFlag(const FerryProgram& program, std::vector<std::string> arguments);

}  // namespace ferry
