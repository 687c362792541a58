#include "common/argument_reader.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <numeric>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace ferry {
namespace {

constexpr size_t kMaxShown = 60;  // of a typed word, in a message

// An option of `app` by its typed name without dashes; null: there is none.
CLI::Option* Find(CLI::App& app, const std::string& name, bool one_letter) {
  if (name.empty()) return nullptr;
  for (CLI::Option* const option : app.get_options()) {
    if (one_letter ? option->check_sname(name) : option->check_lname(name)) return option;
  }
  return nullptr;
}

bool IsSwitch(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

bool Contains(const char* list, char separator, const std::string& word) {
  for (const absl::string_view entry : absl::StrSplit(list, separator)) {
    if (absl::EqualsIgnoreCase(entry, word)) return true;
  }
  return false;
}

// How many letters must be put in, left out or replaced.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

// "--threads" for "thread"; empty: no flag of `app` is near.
std::string Nearest(const CLI::App& app, const std::string& name) {
  std::string nearest;
  size_t best = std::max<size_t>(1, name.size() / 3) + 1;
  if (name.size() < 3) return nearest;
  for (const CLI::Option* const option : app.get_options()) {
    for (const std::string& candidate : option->get_lnames()) {
      const size_t distance = absl::StartsWith(candidate, name) ? 1 : Distance(candidate, name);
      if (distance < best) best = distance, nearest = "--" + candidate;
    }
  }
  return nearest;
}

class Reader {
 public:
  Reader(CLI::App& app, Dialect* dialect) : program_(app), app_(&app), dialect_(dialect) {}

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
    if (dialect_ != nullptr && dialect_->environment) RETURN_IF_ERROR(Environment());
    return std::move(plain_);
  }

 private:
  // Whether the flag's value is `next`.
  absl::StatusOr<bool> Flag(const std::string& argument, const std::string* next) {
    const bool two_dashes = argument.starts_with("--");
    const size_t equals = argument.find('=');
    const std::string spelling = argument.substr(0, equals);
    std::string name = spelling.substr(two_dashes ? 2 : 1);
    const bool one_letter = !two_dashes && name.size() == 1;
    CLI::Option* option = Find(*app_, name, one_letter);
    if (option == nullptr) {
      std::replace(name.begin(), name.end(), '_', '-');  // --ctx_size
      option = Find(*app_, name, one_letter);
    }
    if (option == nullptr) {
      if (const ForeignFlag* const foreign = FindForeign(spelling); foreign != nullptr) {
        return Foreign(*foreign, spelling, equals == std::string::npos ? nullptr : argument.c_str() + equals + 1, next);
      }
      return Unknown(spelling, name);
    }
    typed_.insert(option);
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

  const ForeignFlag* FindForeign(const std::string& spelling) const {
    if (dialect_ == nullptr) return nullptr;
    const std::string dashed = absl::StrReplaceAll(spelling, {{"_", "-"}});
    for (const ForeignFlag& flag : dialect_->foreign) {
      if (*flag.commands != '\0' && !Contains(flag.commands, ' ', app_->get_name())) continue;
      for (const absl::string_view entry : absl::StrSplit(flag.spellings, ' ')) {
        if (entry == spelling || entry == dashed) return &flag;
      }
    }
    return nullptr;
  }

  // `attached`: the value behind "="; null: none. Whether the flag's value is `next`.
  absl::StatusOr<bool> Foreign(const ForeignFlag& flag, const std::string& spelling, const char* attached,
                               const std::string* next) {
    using Kind = ForeignFlag::Kind;
    using Value = ForeignFlag::Value;
    if (flag.kind == Kind::kHint) return InvalidArgument("%s is not a flag of Ferry: %s", spelling, flag.words);
    const bool takes_next =
        attached == nullptr &&
        (flag.value == Value::kOne || (flag.value == Value::kMaybe && next != nullptr && Contains(flag.values, ',', *next)));
    if (takes_next && next == nullptr) return InvalidArgument("%s needs a value behind it", spelling);
    const std::string value = attached != nullptr ? attached : takes_next ? *next : "";
    if ((takes_next || attached != nullptr) && *flag.values != '\0' && !Contains(flag.values, ',', value)) {
      return InvalidArgument("%s %s: Ferry knows %s alone; %s", spelling, value.substr(0, kMaxShown), flag.values, flag.words);
    }
    if (flag.kind == Kind::kTranslate) {
      const std::string target = flag.target;
      CLI::Option* const option = Find(*app_, target.substr(2), /*one_letter=*/false);
      if (option == nullptr) {
        return InvalidArgument("%s is %s in Ferry, which `%s` does not have", spelling, target, Program());
      }
      typed_.insert(option);
      plain_.push_back(target);
      if (!IsSwitch(*option)) plain_.push_back(absl::StrReplaceAll(flag.form, {{"%s", value}}));
    }
    if (dialect_ != nullptr && *flag.words != '\0') dialect_->notes.push_back(spelling + ": " + flag.words);
    return takes_next;
  }

  absl::Status Unknown(const std::string& spelling, const std::string& name) const {
    const std::string shown = spelling.substr(0, kMaxShown);
    const std::string lists = absl::StrFormat("`%s --help` lists them", Program());
    if (name.size() > 1 && std::isdigit(static_cast<unsigned char>(name[1])) != 0 && Find(*app_, name.substr(0, 1), true)) {
      return InvalidArgument("%s is not a flag of `%s`; do you mean -%c %s?", shown, Program(), name[0],
                             name.substr(1, kMaxShown));
    }
    if (app_ != &program_) {
      for (CLI::App* const other : program_.get_subcommands([](CLI::App*) { return true; })) {
        if (Find(*other, name, name.size() == 1) == nullptr) continue;
        return InvalidArgument("%s is a flag of `%s%s`, and `%s` does not have it; %s", shown, above_, other->get_name(),
                               Program(), lists);
      }
    }
    const std::string nearest = Nearest(*app_, name);
    if (nearest.empty()) return InvalidArgument("%s is not a flag of `%s`; %s", shown, Program(), lists);
    return InvalidArgument("%s is not a flag of `%s`; do you mean %s? %s", shown, Program(), nearest, lists);
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

  // Variables of the flags that were not typed, and that no typed flag excludes.
  absl::Status Environment() {
    for (CLI::Option* const option : app_->get_options()) {
      const std::string variable = VariableOf(*option);
      const char* const value = variable.empty() ? nullptr : std::getenv(variable.c_str());
      if (value == nullptr || *value == '\0' || typed_.contains(option)) continue;
      const std::set<CLI::Option*>& excluded = option->get_excludes();
      if (std::any_of(excluded.begin(), excluded.end(), [&](CLI::Option* other) { return typed_.contains(other); })) continue;
      for (const std::string& name : option->get_snames()) dialect_->variables["-" + name] = variable;
      for (const std::string& name : option->get_lnames()) dialect_->variables["--" + name] = variable;
      typed_.insert(option);  // so that the next variable does not set what this one excludes
      if (!IsSwitch(*option)) {
        plain_.insert(plain_.end(), {"--" + option->get_lnames().front(), value});
      } else if (Contains("1,true,on,yes", ',', value)) {
        plain_.push_back("--" + option->get_lnames().front());
      } else if (!Contains("0,false,off,no", ',', value)) {
        return InvalidArgument("%s is '%s', want 1 or 0", variable, std::string(value).substr(0, kMaxShown));
      } else if (Find(*app_, "no-" + option->get_lnames().front(), false) == option) {
        plain_.push_back("--no-" + option->get_lnames().front());
      }
    }
    return absl::OkStatus();
  }

  std::string Program() const { return above_ + app_->get_name(); }

  CLI::App& program_;
  CLI::App* app_;  // whose flags come now
  Dialect* const dialect_;
  std::string above_;  // the names of the commands above it
  int64_t words_ = 0;  // without a flag, of app_
  std::set<CLI::Option*> typed_;
  std::vector<std::string> plain_;
};

}  // namespace

std::string VariableOf(const CLI::Option& option) {
  if (option.get_lnames().empty() || !option.get_configurable()) return "";
  std::string name = "FERRY_" + option.get_lnames().front();
  std::replace(name.begin(), name.end(), '-', '_');
  absl::AsciiStrToUpper(&name);
  return name;
}

absl::StatusOr<std::vector<std::string>> ReadArguments(CLI::App& app, const std::vector<std::string>& typed, Dialect* dialect) {
  return Reader(app, dialect).Read(typed);
}

}  // namespace ferry
