#include "common/command_line.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/argument_reader.h"
#include "common/number.h"

namespace ferry {
namespace {

// "-c,--ctx-size" is spoken of as "-c".
std::string FirstName(const std::string& names) {
  const std::string first = names.substr(0, names.find(','));
  return first.starts_with('!') ? first.substr(1) : first;
}

}  // namespace

namespace command_line {

CLI::Option* AddValue(CLI::App& app, const std::string& names, const std::string& type, const std::string& help,
                      std::function<absl::Status(const std::string&)> set) {
  const CLI::callback_t callback = [name = FirstName(names), set = std::move(set)](const CLI::results_t& values) {
    const absl::Status status = set(values.back());
    if (!status.ok()) throw CLI::ConversionError(name + " is " + std::string(status.message()));
    return true;
  };
  return app.add_option(names, callback, help)
      ->type_name(type)
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

absl::StatusOr<int64_t> IntegerOf(const std::string& text, const IntegerRange& range) {
  if (range.automatic && text == "-1") return *range.automatic;
  absl::StatusOr<int64_t> value = ParseInteger(text, range.min, range.max, range.units);
  if (value.ok() || !range.automatic) return value;
  return InvalidArgument("%s, or -1 for the automatic choice", value.status().message());
}

}  // namespace command_line

using command_line::AddValue;

CLI::Option* AddDecimal(CLI::App& app, const std::string& names, double& target, double min, double max,
                        const std::string& help) {
  return AddValue(app, names, "X", help, [&target, min, max](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(target, ParseDecimal(text, min, max));
    return absl::OkStatus();
  });
}

CLI::Option* AddDecimal(CLI::App& app, const std::string& names, std::optional<float>& target, double min, double max,
                        const std::string& help) {
  return AddValue(app, names, "X", help, [&target, min, max](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(const double value, ParseDecimal(text, min, max));
    target = static_cast<float>(value);
    return absl::OkStatus();
  });
}

CLI::Option* AddSeed(CLI::App& app, const std::string& names, std::optional<uint64_t>& target, const std::string& help) {
  return AddValue(app, names, "N", help, [&target](const std::string& text) -> absl::Status {
    if (text == "-1") {
      target.reset();
      return absl::OkStatus();
    }
    const absl::StatusOr<uint64_t> seed = ParseUnsigned(text, std::numeric_limits<uint64_t>::max());
    if (!seed.ok()) return InvalidArgument("%s, or -1 for a random one", seed.status().message());
    target = *seed;
    return absl::OkStatus();
  });
}

CLI::Option* AddText(CLI::App& app, const std::string& names, std::string& target, const std::string& help) {
  return AddValue(app, names, "TEXT", help, [&target](const std::string& text) {
    target = text;
    return text.empty() ? InvalidArgument("empty, want a text") : absl::OkStatus();
  });
}

CLI::Option* AddText(CLI::App& app, const std::string& names, std::optional<std::string>& target, const std::string& help) {
  return AddValue(app, names, "TEXT", help, [&target](const std::string& text) {
    target = text;
    return absl::OkStatus();
  });
}

CLI::Option* AddTexts(CLI::App& app, const std::string& names, std::vector<std::string>& target, const std::string& help) {
  const CLI::callback_t callback = [&target](const CLI::results_t& values) {
    target.assign(values.begin(), values.end());
    return true;
  };
  // Without "extra" arguments CLI11 looks into no value for brackets and commas.
  return app.add_option(names, callback, help)
      ->type_name("TEXT")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

CLI::Option* AddChoice(CLI::App& app, const std::string& names, std::string& target, const std::vector<const char*>& choices,
                       const std::string& help) {
  const std::string type = absl::StrJoin(choices, "|");
  return AddValue(app, names, type, help, [&target, choices, type](const std::string& text) -> absl::Status {
    for (const char* const choice : choices) {
      if (!absl::EqualsIgnoreCase(text, choice)) continue;
      target = choice;
      return absl::OkStatus();
    }
    return InvalidArgument("'%s', want %s", text, type);
  });
}

CLI::Option* AddSwitch(CLI::App& app, const std::string& names, bool& target, const std::string& help) {
  return app.add_flag(names, target, help)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

absl::Status ParseArguments(CLI::App& app, const std::vector<std::string>& arguments, Dialect* dialect) {
  ASSIGN_OR_RETURN(std::vector<std::string> plain, ReadArguments(app, arguments, dialect));
  std::reverse(plain.begin(), plain.end());  // as CLI11 takes them
  try {
    app.parse(plain);
  } catch (const CLI::Success&) {
    throw;                                     // help and version: the caller prints them
  } catch (const CLI::ExcludesError& error) {  // "--file excludes --prompt"
    return InvalidArgument("%s: give one of them", absl::StrReplaceAll(error.what(), {{" excludes ", " does not go with "}}));
  } catch (const CLI::ParseError& error) {
    const std::string message = error.what(), flag = message.substr(0, message.find(' '));
    const bool by_variable = dialect != nullptr && dialect->variables.contains(flag);
    return InvalidArgument("%s%s", message, by_variable ? " (set by " + dialect->variables[flag] + ")" : "");
  }
  return absl::OkStatus();
}

std::optional<int> ParseCommandLine(CLI::App& app, const std::vector<std::string>& arguments, Dialect* dialect) {
  try {
    const absl::Status status = ParseArguments(app, arguments, dialect);
    if (dialect != nullptr) {
      for (const std::string& note : dialect->notes) std::cerr << "note: " << note << std::endl;
    }
    if (status.ok()) return std::nullopt;
    std::cerr << "error: " << status.message() << std::endl;
    return 2;
  } catch (const CLI::Success& success) {
    return app.exit(success, std::cout, std::cerr);
  }
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  return ParseCommandLine(app, std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

}  // namespace ferry
