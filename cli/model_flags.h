#pragma once

// The table of the flags that say which model is served and how. It makes the parser of every command that takes them, and the
// command lines of the processes that are started.

#include <CLI/CLI.hpp>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cli/model_options.h"

namespace ferry {

// A flag of ModelOptions: how it is typed, and how the processes that need it are told. One row makes both sides, so that a flag
// cannot be taken and then lost.
struct ModelFlag {
  const char* names;         // "-c,--ctx-size"
  const char* group;         // of the help
  bool serve_only;           // a flag of `ferry serve` alone
  const char* told;          // the flag by which a child process is told; null: this process acts on it
  bool coordinator, worker;  // which of them are told
  std::function<CLI::Option*(CLI::App&, ModelOptions&)> add;
  // What follows `told`, an entry for each time that it is given; empty: the child's own default is meant. A switch that is set
  // gives one empty entry.
  std::function<std::vector<std::string>(const ModelOptions&)> values;
  bool is_switch = false;
};
std::span<const ModelFlag> ModelFlags();
// Sets `flag`, which takes a value, as if it were typed. InvalidArgument: the value is not one of its.
absl::Status SetModelFlag(const ModelFlag& flag, const std::string& value, ModelOptions* options);

}  // namespace ferry
