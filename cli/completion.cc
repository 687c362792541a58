// `ferry completion`: a script that completes commands and flags in a shell.

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/reference.h"
#include "common/command_line.h"

namespace ferry {

Command AddCompletion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  AddChoice(app, "shell", *shell, {"bash", "zsh", "fish"}, "the shell that reads the completion")->required();
  app.footer(Examples({"source <(ferry completion bash)    for this shell; in ~/.bashrc for every one",
                       "ferry completion fish > ~/.config/fish/completions/ferry.fish"}));
  return [shell]() -> absl::Status {
    const std::unique_ptr<FerryProgram> program = MakeFerry("");
    std::fputs(CompletionScript(*program, *shell).c_str(), stdout);
    return absl::OkStatus();
  };
}

}  // namespace ferry
