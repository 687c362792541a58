#pragma once

// Typed arguments and environment variables, rewritten into the one form that CLI11 cannot misread: a flag, then its value, each
// an argument of its own. common/command_line.h says how arguments are read.

#include <CLI/CLI.hpp>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

// A flag of other engines that a program does not have under this spelling, and the program's answer to it.
struct ForeignFlag {
  enum class Kind {
    kAccept,     // the program behaves so always: the flag is dropped, with a note
    kTranslate,  // the program's own flag has another name
    kHint,       // refused, with words that say what to do instead
  };
  enum class Value { kNone, kOne, kMaybe };  // kMaybe: the next argument, if it is one of `values`

  const char* spellings;  // separated by spaces: "-ngl --gpu-layers"
  Kind kind;
  Value value;
  const char* words;          // of the note or of the refusal; empty: no note
  const char* target = "";    // kTranslate: "--listen"
  const char* form = "%s";    // kTranslate: the target's value, made of the typed one: "%sMiB"; "debug"; "" for a switch
  const char* values = "";    // separated by commas: others are refused by name; empty: any
  const char* commands = "";  // separated by spaces: the commands that the row is for; empty: all
};

// What a program reads beside its own flags.
struct Dialect {
  std::span<const ForeignFlag> foreign;
  bool environment = false;                           // FERRY_CTX_SIZE sets --ctx-size where the flag is not typed
  std::map<std::string, std::string> variables = {};  // "-c" to "FERRY_CTX_SIZE", which set it; ReadArguments adds them
  std::vector<std::string> notes;  // a line for each foreign flag that was accepted or translated; ReadArguments adds them
};

// The environment variable of an option: "FERRY_CTX_SIZE". Empty: it has no name of several letters, or it prints something.
std::string VariableOf(const CLI::Option& option);

// Rewrites the arguments of `app` and of the subcommand that they name. InvalidArgument names the flag, and the nearest one that
// the program has. `dialect`: null for none.
absl::StatusOr<std::vector<std::string>> ReadArguments(CLI::App& app, const std::vector<std::string>& typed, Dialect* dialect);

}  // namespace ferry
