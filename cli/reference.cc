#include "cli/reference.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/argument_reader.h"

namespace ferry {
namespace {

std::vector<const CLI::Option*> FlagsOf(const CLI::App& command) {
  std::vector<const CLI::Option*> flags;
  for (const CLI::Option* const option : command.get_options()) {
    if (!option->get_positional()) flags.push_back(option);
  }
  return flags;
}

// "-c", "--ctx-size", "--no-ooae".
std::vector<std::string> SpellingsOf(const CLI::Option& option) {
  std::vector<std::string> spellings;
  for (const std::string& name : option.get_snames()) spellings.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) spellings.push_back("--" + name);
  return spellings;
}

bool IsSwitch(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

// The words of a choice: "auto|shm|grpc"; empty: any value.
std::vector<std::string> WordsOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  if (IsSwitch(option) || type.find('|') == std::string::npos) return {};
  return absl::StrSplit(type, '|');
}

std::string Cell(const std::string& text) { return absl::StrReplaceAll(text, {{"\n", " "}, {"|", "\\|"}}); }

void AddFlags(const CLI::App& command, const std::string& group, std::string* text) {
  bool begun = false;
  for (const CLI::Option* const option : FlagsOf(command)) {
    if (option->get_group() != group || !option->get_configurable()) continue;
    if (!std::exchange(begun, true)) {
      absl::StrAppend(text, group.empty() || group == "Options" ? "" : "\n*" + group + "*\n",
                      "\n| flag | what it does | variable |\n", "| --- | --- | --- |\n");
    }
    std::vector<std::string> spellings = SpellingsOf(*option);
    for (std::string& spelling : spellings) spelling = "`" + spelling + "`";
    const std::string type = IsSwitch(*option) || option->get_type_name().empty() ? "" : " " + Cell(option->get_type_name());
    absl::StrAppend(text, "| ", absl::StrJoin(spellings, ", "), type, " | ", Cell(option->get_description()),
                    option->get_required() ? " (required)" : "", " | `", VariableOf(*option), "` |\n");
  }
}

void AddCommand(const CLI::App& command, std::string* text) {
  absl::StrAppend(text, "\n## ferry ", command.get_name(), "\n\n`ferry ", command.get_name(), "`: ", command.get_description(),
                  ".\n");
  for (const CLI::Option* const option : command.get_options()) {
    if (!option->get_positional()) continue;
    absl::StrAppend(text, "\n`", option->get_name(), "`: ", Cell(option->get_description()), ".\n");
  }
  std::vector<std::string> groups;
  for (const CLI::Option* const option : FlagsOf(command)) {
    if (std::find(groups.begin(), groups.end(), option->get_group()) == groups.end()) groups.push_back(option->get_group());
  }
  for (const std::string& group : groups) AddFlags(command, group, text);
  if (const std::string examples = command.get_footer(); !examples.empty()) {
    const std::string lines = examples.substr(std::min(examples.find('\n'), examples.size()));  // without "Examples:"
    absl::StrAppend(text, "\n```", absl::StrReplaceAll(lines, {{"\n  ", "\n"}}), lines.back() == '\n' ? "" : "\n", "```\n");
  }
}

std::string BashScript(const FerryProgram& program) {
  std::vector<std::string> names;
  std::string flags, words;
  for (const auto& [command, run] : program.commands) {
    names.push_back(command->get_name());
    std::vector<std::string> spellings;
    for (const CLI::Option* const option : FlagsOf(*command)) {
      const std::vector<std::string> own = SpellingsOf(*option);
      spellings.insert(spellings.end(), own.begin(), own.end());
      if (WordsOf(*option).empty()) continue;
      for (const std::string& spelling : own) {
        absl::StrAppend(&words, "    ", command->get_name(), ":", spelling, ") words='", absl::StrJoin(WordsOf(*option), " "),
                        "' ;;\n");
      }
    }
    absl::StrAppend(&flags, "    ", command->get_name(), ") flags='", absl::StrJoin(spellings, " "), "' ;;\n");
  }
  return absl::StrCat(
      "# Completion of ferry for bash: source <(ferry completion bash)\n"
      "_ferry() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} flags= words=\n"
      "  COMPREPLY=()\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W '",
      absl::StrJoin(names, " "),
      " help version --help --version' -- \"$current\"))\n"
      "    return\n"
      "  fi\n"
      "  case $command:$before in\n",
      words,
      "  esac\n"
      "  case $command in\n",
      flags,
      "  esac\n"
      "  if [ -n \"$words\" ]; then\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "  elif [ \"${current:0:1}\" = - ]; then\n"
      "    COMPREPLY=($(compgen -W \"$flags\" -- \"$current\"))\n"
      "  fi\n"
      "}\n"
      "complete -o default -F _ferry ferry\n");
}

// Text within single quotes of fish.
std::string Quoted(const std::string& text) {
  return "'" + absl::StrReplaceAll(text.substr(0, text.find('\n')), {{"\\", "\\\\"}, {"'", "\\'"}}) + "'";
}

std::string FishScript(const FerryProgram& program) {
  std::string script = "# Completion of ferry for fish: ferry completion fish | source\n";
  for (const auto& [command, run] : program.commands) {
    absl::StrAppend(&script, "complete -c ferry -n __fish_use_subcommand -f -a ", command->get_name(), " -d ",
                    Quoted(command->get_description()), "\n");
  }
  for (const auto& [command, run] : program.commands) {
    for (const CLI::Option* const option : FlagsOf(*command)) {
      absl::StrAppend(&script, "complete -c ferry -n '__fish_seen_subcommand_from ", command->get_name(), "'");
      for (const std::string& name : option->get_snames()) absl::StrAppend(&script, " -s ", name);
      for (const std::string& name : option->get_lnames()) absl::StrAppend(&script, " -l ", name);
      if (!IsSwitch(*option)) absl::StrAppend(&script, " -r");
      if (!WordsOf(*option).empty()) absl::StrAppend(&script, " -f -a '", absl::StrJoin(WordsOf(*option), " "), "'");
      absl::StrAppend(&script, " -d ", Quoted(option->get_description()), "\n");
    }
  }
  return script;
}

}  // namespace

std::string CommandReference(FerryProgram& program) {
  std::string text =
      "# Commands and flags\n\n"
      "This page is made from the program's own table; `ferry COMMAND --help` prints the same. A flag of several letters may "
      "have\n"
      "one dash, as llama.cpp's have: `-ub 512`. Each flag can be set by the variable beside it; a typed flag wins.\n"
      "`docs/operations.md` says what happens to flags of other engines.\n\n"
      "| command | what it does |\n| --- | --- |\n";
  for (const auto& [command, run] : program.commands) {
    absl::StrAppend(&text, "| [ferry ", command->get_name(), "](#ferry-", command->get_name(), ") | ",
                    Cell(command->get_description()), " |\n");
  }
  for (const auto& [command, run] : program.commands) AddCommand(*command, &text);
  return text;
}

std::string CompletionScript(const FerryProgram& program, const std::string& shell) {
  if (shell == "fish") return FishScript(program);
  const std::string script = BashScript(program);
  if (shell == "bash") return script;
  return "# Completion of ferry for zsh: source <(ferry completion zsh)\nautoload -U +X bashcompinit && bashcompinit\n" + script;
}

}  // namespace ferry
