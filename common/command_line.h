#pragma once

// Command lines of all of Ferry's programs. CLI11 keeps the flags and writes the help; values are read here, because CLI11
// splits "[a,b]", reads numbers in other bases, lets them wrap, and takes "-xyz" for "-x yz".
//
//  - A value arrives byte for byte. The argument behind a flag that takes a value is its value, whatever it begins with.
//  - "--flag value" and "--flag=value" are the same. A flag of several letters may have one dash, as llama.cpp's have: -ub 512.
//  - Of a flag that is given twice the last value counts; a flag that may be repeated (AddTexts) keeps all.
//  - A number is decimal and in its range, or it is refused by the flag's name.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "common/status.h"

namespace ferry {

struct Dialect;

struct IntegerRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int32_t>::max();
  std::optional<int64_t> automatic = std::nullopt;  // what -1, "choose it for me", sets; without it -1 is a number as any
  bool units = false;                               // 32k is 32768
};

namespace command_line {
// Adds a flag whose value `set` takes, or refuses by an error that completes "-c is ...".
CLI::Option* AddValue(CLI::App& app, const std::string& names, const std::string& type, const std::string& help,
                      std::function<absl::Status(const std::string&)> set);
absl::StatusOr<int64_t> IntegerOf(const std::string& text, const IntegerRange& range);
}  // namespace command_line

// Each adds a flag that sets `target`, which outlives the parse and keeps its value where the flag is not given. `names`:
// "-c,--ctx-size", or "path" for an argument without a flag.
template <typename T>
requires(std::is_integral_v<T>) CLI::Option* AddInteger(CLI::App& app, const std::string& names, T& target,
                                                        const IntegerRange& range, const std::string& help) {
  return command_line::AddValue(app, names, "N", help, [&target, range](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, command_line::IntegerOf(text, range));
    target = static_cast<T>(value);
    return absl::OkStatus();
  });
}
template <typename T>
requires(std::is_integral_v<T>) CLI::Option* AddInteger(CLI::App& app, const std::string& names, std::optional<T>& target,
                                                        const IntegerRange& range, const std::string& help) {
  return command_line::AddValue(app, names, "N", help, [&target, range](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, command_line::IntegerOf(text, range));
    target = static_cast<T>(value);
    return absl::OkStatus();
  });
}
// From `min` to `max`, both included.
CLI::Option* AddDecimal(CLI::App& app, const std::string& names, double& target, double min, double max, const std::string& help);
CLI::Option* AddDecimal(CLI::App& app, const std::string& names, std::optional<float>& target, double min, double max,
                        const std::string& help);
// 0 to 2^64 - 1; -1 leaves the choice to the program: `target` is empty.
CLI::Option* AddSeed(CLI::App& app, const std::string& names, std::optional<uint64_t>& target, const std::string& help);
CLI::Option* AddText(CLI::App& app, const std::string& names, std::string& target, const std::string& help);
CLI::Option* AddText(CLI::App& app, const std::string& names, std::optional<std::string>& target, const std::string& help);
// May be given several times; each value is one text.
CLI::Option* AddTexts(CLI::App& app, const std::string& names, std::vector<std::string>& target, const std::string& help);
// One of `choices`, in any case; `target` gets it as it is written there.
CLI::Option* AddChoice(CLI::App& app, const std::string& names, std::string& target, const std::vector<const char*>& choices,
                       const std::string& help);
// "--probe", or "--ooae,!--no-ooae" for one that can also be switched off.
CLI::Option* AddSwitch(CLI::App& app, const std::string& names, bool& target, const std::string& help);

// Reads argv into the flags of `app` and of the subcommand that it names. An exit code when the program is to end now: 0 after
// help or version on standard output, 2 after a message on standard error.
std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv);
// The same for arguments without the program's name. `dialect`: flags of other engines and environment variables that are read
// too (common/argument_reader.h); its notes go to standard error.
std::optional<int> ParseCommandLine(CLI::App& app, const std::vector<std::string>& arguments, Dialect* dialect = nullptr);
// InvalidArgument names the argument. OK: the flags are set.
absl::Status ParseArguments(CLI::App& app, const std::vector<std::string>& arguments, Dialect* dialect = nullptr);

}  // namespace ferry
