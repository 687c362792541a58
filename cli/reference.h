#pragma once

// What is made of the table of commands and flags: docs/cli.md, and completions for shells.

#include <string>

#include "cli/ferry_program.h"

namespace ferry {

// docs/cli.md.
std::string CommandReference(FerryProgram& program);
// A script for `shell`, "bash", "zsh" or "fish", that completes commands, flags, the words that a flag takes, and files.
std::string CompletionScript(const FerryProgram& program, const std::string& shell);

}  // namespace ferry
