#include "cli/ferry_program.h"

#include "common/argument_reader.h"

namespace ferry {
namespace {

// Names the environment variable of each flag.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_desc(const CLI::Option* option) const override {
    const std::string text = CLI::Formatter::make_option_desc(option), variable = VariableOf(*option);
    return variable.empty() ? text : text + " [" + variable + "]";
  }
};

}  // namespace

FerryProgram::FerryProgram()
    : app("Ferry runs mixture-of-experts language models that do not fit in GPU memory: experts stay in host memory, and only\n"
          "those that a batch activates are ferried to a GPU.",
          "ferry") {}

std::unique_ptr<FerryProgram> MakeFerry(const std::string& version) {
  auto program = std::make_unique<FerryProgram>();
  CLI::App& app = program->app;
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_version_flag("--version", version);
  app.footer(
      "Every flag of a command can be given by the variable that its help names, such as FERRY_MODEL; a typed flag wins.\n"
      "Try: ferry generate -m models/demo-moe.gguf --workers 2 -p \"Once upon a time\"");
  const auto add = [&](const char* name, const char* what, Command (*setup)(CLI::App&)) {
    CLI::App* const command = app.add_subcommand(name, what);
    program->commands.emplace_back(command, setup(*command));
  };
  add("serve", "start a coordinator and its workers and keep them running", AddServe);
  add("generate", "continue a prompt", AddGenerate);
  add("chat", "a conversation at the terminal", AddChat);
  add("score", "log-probabilities and perplexity of a text", AddScore);
  add("bench", "measure prefill and decode against the machine's limits", AddBench);
  add("inspect", "what a model file holds", AddInspect);
  add("plan", "what would go where and how fast it would be, without loading", AddPlan);
  add("status", "workers, caches and rates of a running server", AddStatus);
  add("tokenize", "text to token ids, from a file alone", AddTokenize);
  add("detokenize", "token ids to text, from a file alone", AddDetokenize);
  add("make-model", "write a model of a published shape, or of a tiny one, with random weights, for benchmarks", AddMakeModel);
  add("cluster-init", "make the certificates of a cluster of several hosts", AddClusterInit);
  add("cluster-token", "a one-time token for a host that joins the cluster", AddClusterToken);
  add("api-key", "make a key for the API", AddApiKey);
  add("join", "fetch this host's certificate with a token", AddJoin);
  add("completion", "a script that completes commands and flags in a shell", AddCompletion);
  return program;
}

std::vector<std::string> WithHelpAsFlag(const FerryProgram& program, std::vector<std::string> arguments) {
  if (arguments.empty()) return {"--help"};
  if (arguments[0] == "version" && arguments.size() == 1) return {"--version"};
  if (arguments[0] != "help") return arguments;
  if (arguments.size() == 1) return {"--help"};
  const bool known = std::any_of(program.commands.begin(), program.commands.end(),
                                 [&](const auto& command) { return command.first->get_name() == arguments[1]; });
  if (!known || arguments.size() > 2) return {arguments.begin() + 1, arguments.end()};  // which is refused by name
  return {arguments[1], "--help"};
}

}  // namespace ferry
