// `ferry score`: how likely the model finds a text.

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/commands.h"
#include "cli/prompt.h"
#include "common/command_line.h"

namespace ferry {
namespace {

struct ScoreOptions {
  ModelOptions model;
  PromptOptions prompt;
  std::string server;
  uint32_t top = 0;
  bool json = false;
};

absl::Status Score(const ScoreOptions& options) {
  proto::GenerateRequest request;
  RETURN_IF_ERROR(options.model.CheckOutputs({options.prompt.file.value_or(""), options.prompt.ids_file.value_or("")}));
  RETURN_IF_ERROR(options.prompt.Fill(request));
  request.set_max_tokens(0);
  request.set_prompt_logprobs(options.top);
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(options.server, options.model));
  nlohmann::json logprobs = nlohmann::json::array(), top = nlohmann::json::array();
  double sum = 0;
  int64_t count = 0;
  ASSIGN_OR_RETURN(const proto::Finish finish, client->Generate(request, [&](const proto::GenerateResponse& response) {
    for (const proto::PositionLogprobs& position : response.prompt_logprobs()) {
      sum += position.logprob();
      ++count;
      logprobs.push_back(position.logprob());
      nlohmann::json best = nlohmann::json::array();
      for (const proto::TokenLogprob& token : position.top()) best.push_back({{"id", token.id()}, {"logprob", token.logprob()}});
      top.push_back(std::move(best));
    }
    return true;
  }));
  if (count == 0) return InvalidArgument("the text has %d tokens: at least two are needed to score one", finish.prompt_tokens());
  const double perplexity = std::exp(-sum / static_cast<double>(count));
  if (options.json) {
    nlohmann::json result = {{"logprobs", std::move(logprobs)}, {"perplexity", perplexity}};
    if (options.top > 0) result["top"] = std::move(top);
    std::printf("%s\n", result.dump().c_str());
  } else {
    std::printf("%lld tokens, perplexity %.4f\n", static_cast<long long>(count), perplexity);
  }
  return client->Close();
}

}  // namespace

Command AddScore(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  options->model.AddTo(app, /*model_required=*/false);
  options->prompt.AddTo(app);
  AddText(app, "--server", options->server, "use the coordinator at this address instead of starting one")
      ->excludes(app.get_option("--model"));
  AddInteger(app, "--top", options->top, {.max = 20}, "with --json: also this many best tokens at each position");
  AddSwitch(app, "--json", options->json, "print {\"logprobs\": [...], \"perplexity\": x}");
  app.footer(Examples({"ferry score -m model.gguf -f chapter.txt", "ferry score -m model.gguf --ids ids.txt --json"}));
  return [options]() -> absl::Status {
    if (options->server.empty() == options->model.model.empty())
      return InvalidArgument("give -m FILE, or --server ADDR of a running coordinator");
    return Score(*options);
  };
}

}  // namespace ferry
