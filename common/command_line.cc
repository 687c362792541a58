#include "common/command_line.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "common/number.h"

namespace ferry {
namespace {

// "-c,--ctx-size" is spoken of as "-c".
std::string FirstName(const std::string& names) {
  const std::string first = names.substr(0, names.find(','));
  return first.starts_with('!') ? first.substr(1) : first;
}

// An option of `app` by its typed name without dashes; null: there is none.
CLI::Option* Find(CLI::App& app, const std::string& name, bool one_letter) {
  for (CLI::Option* const option : app.get_options()) {
    if (one_letter ? option->check_sname(name) : option->check_lname(name)) return option;
  }
  return nullptr;
}

bool IsSwitch(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

// Writes typed arguments in the one form that CLI11 cannot misread: a flag, then its value, each an argument of its own.
class Reader {
 public:
  explicit Reader(CLI::App& app) : app_(&app) {}

  absl::StatusOr<std::vector<std::string>> Read(const std::vector<std::string>& typed) {
    for (size_t i = 0; i < typed.size(); ++i) {
      const std::string& argument = typed[i];
      if (argument.size() > 1 && argument.starts_with('-')) {
        ASSIGN_OR_RETURN(const bool takes_next, Flag(argument, i + 1 < typed.size() ? &typed[i + 1] : nullptr));
        if (takes_next) ++i;
      } else {
        RETURN_IF_ERROR(Word(argument));
      }
    }
    return std::move(plain_);
  }

 private:
  // Whether the flag's value is `next`.
  absl::StatusOr<bool> Flag(const std::string& argument, const std::string* next) {
    const bool two_dashes = argument.starts_with("--");
    const size_t equals = argument.find('=');
    const std::string spelling = argument.substr(0, equals);
    const std::string name = spelling.substr(two_dashes ? 2 : 1);
    const bool one_letter = !two_dashes && name.size() == 1;
    const CLI::Option* const option = name.empty() ? nullptr : Find(*app_, name, one_letter);
    if (option == nullptr) {
      return InvalidArgument("%s is not a flag of `%s`; `%s --help` lists them", spelling, Program(), Program());
    }
    plain_.push_back((one_letter ? "-" : "--") + name);
    if (IsSwitch(*option)) {
      if (equals != std::string::npos) return InvalidArgument("%s takes no value", spelling);
      return false;
    }
    if (equals != std::string::npos) {
      plain_.push_back(argument.substr(equals + 1));
      return false;
    }
    if (next == nullptr) return InvalidArgument("%s needs a value behind it", spelling);
    plain_.push_back(*next);
    return true;
  }

  // The name of a command, or a value without a flag.
  absl::Status Word(const std::string& word) {
    const auto commands = app_->get_subcommands([](CLI::App*) { return true; });
    if (!commands.empty()) {
      const auto named = std::find_if(commands.begin(), commands.end(), [&](CLI::App* c) { return c->get_name() == word; });
      if (named == commands.end()) {
        return InvalidArgument("'%s' is not a command of %s; `%s --help` lists them", word, Program(), Program());
      }
      plain_.push_back(word);
      above_ += app_->get_name() + " ";
      app_ = *named;
      return absl::OkStatus();
    }
    const std::vector<CLI::Option*> options = app_->get_options();
    const auto takes_words = std::count_if(options.begin(), options.end(), [](CLI::Option* o) { return o->get_positional(); });
    if (++words_ > takes_words) return InvalidArgument("'%s' is one argument too many for `%s`", word, Program());
    plain_.push_back(word);
    return absl::OkStatus();
  }

  std::string Program() const { return above_ + app_->get_name(); }

  CLI::App* app_;      // whose flags come now
  std::string above_;  // the names of the commands above it
  int64_t words_ = 0;  // without a flag, of app_
  std::vector<std::string> plain_;
};

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

absl::Status ParseArguments(CLI::App& app, const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(std::vector<std::string> plain, Reader(app).Read(arguments));
  std::reverse(plain.begin(), plain.end());  // as CLI11 takes them
  try {
    app.parse(plain);
  } catch (const CLI::Success&) {
    throw;  // help and version: the caller prints them
  } catch (const CLI::ParseError& error) {
    return InvalidArgument("%s", error.what());
  }
  return absl::OkStatus();
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  try {
    const absl::Status status = ParseArguments(app, std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
    if (status.ok()) return std::nullopt;
    std::cerr << "error: " << status.message() << std::endl;
    return 2;
  } catch (const CLI::Success& success) {
    return app.exit(success, std::cout, std::cerr);
  }
}

}  // namespace ferry
