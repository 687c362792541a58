// `ferry score`: how likely the model finds a text.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

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
  std::optional<int64_t> chunks;  // 0: as many as the text has; nothing: the text is scored in one piece
  int64_t chunk_size = 512;
};

// Log-probabilities of tokens 1, 2, ... of the prompt go to `add`.
absl::StatusOr<proto::Finish> ScorePrompt(Client& client, proto::GenerateRequest request, uint32_t top,
                                          const std::function<void(const proto::PositionLogprobs&)>& add) {
  request.set_max_tokens(0);
  request.set_prompt_logprobs(top);
  return client.Generate(request, [&](const proto::GenerateResponse& response) {
    for (const proto::PositionLogprobs& position : response.prompt_logprobs()) add(position);
    return true;
  });
}

absl::Status ScoreWhole(Client& client, const proto::GenerateRequest& request, const ScoreOptions& options) {
  nlohmann::json logprobs = nlohmann::json::array(), top = nlohmann::json::array();
  double sum = 0;
  int64_t count = 0;
  const auto add = [&](const proto::PositionLogprobs& position) {
    sum += position.logprob();
    ++count;
    logprobs.push_back(position.logprob());
    nlohmann::json best = nlohmann::json::array();
    for (const proto::TokenLogprob& token : position.top()) best.push_back({{"id", token.id()}, {"logprob", token.logprob()}});
    top.push_back(std::move(best));
  };
  ASSIGN_OR_RETURN(const proto::Finish finish, ScorePrompt(client, request, options.top, add));
  if (count == 0) return InvalidArgument("the text has %d tokens: at least two are needed to score one", finish.prompt_tokens());
  const double perplexity = std::exp(-sum / static_cast<double>(count));
  if (options.json) {
    nlohmann::json result = {{"logprobs", std::move(logprobs)}, {"perplexity", perplexity}};
    if (options.top > 0) result["top"] = std::move(top);
    std::printf("%s\n", result.dump().c_str());
  } else {
    std::printf("%lld tokens, perplexity %.4f\n", static_cast<long long>(count), perplexity);
  }
  return absl::OkStatus();
}

// The mean of what was added, and by how much it may be off.
class Mean {
 public:
  void Add(double value) { ++count_, sum_ += value, squares_ += value * value; }
  int64_t count() const { return count_; }
  double mean() const { return sum_ / static_cast<double>(count_); }
  double standard_error() const {
    const double n = static_cast<double>(count_), variance = squares_ / n - mean() * mean();
    return count_ > 1 ? std::sqrt(std::max(0.0, variance) / (n - 1)) : 0;
  }

 private:
  int64_t count_ = 0;
  double sum_ = 0, squares_ = 0;
};

// As llama.cpp measures perplexity, so that numbers can be compared: each chunk is a prompt of its own, begins with the
// beginning-of-text token in place of its first one, and only its second half is scored.
absl::Status ScoreChunks(Client& client, const proto::GenerateRequest& request, const ScoreOptions& options) {
  ASSIGN_OR_RETURN(const proto::GetModelInfoResponse model, client.ModelInfo());
  if (options.chunk_size > model.context_length()) {
    return InvalidArgument("--chunk-size is %d, and the context is %d tokens: give -c", options.chunk_size,
                           model.context_length());
  }
  proto::TokenizeRequest empty;
  if (request.has_add_bos()) empty.set_add_bos(request.add_bos());
  ASSIGN_OR_RETURN(const std::vector<uint32_t> bos, client.Tokenize(empty));
  std::vector<uint32_t> ids(request.tokens().ids().begin(), request.tokens().ids().end());
  if (request.has_text()) {
    proto::TokenizeRequest tokenize = empty;
    tokenize.set_text(request.text());
    ASSIGN_OR_RETURN(ids, client.Tokenize(tokenize));
  }
  const int64_t size = options.chunk_size, whole = static_cast<int64_t>(ids.size()) / size;
  const int64_t chunks = *options.chunks > 0 ? std::min(*options.chunks, whole) : whole;
  if (chunks == 0) return InvalidArgument("the text has %d tokens, fewer than a chunk's %d: give --chunk-size", ids.size(), size);
  Mean surprise;
  nlohmann::json after = nlohmann::json::array();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    proto::GenerateRequest part = request;
    auto* const tokens = part.mutable_tokens()->mutable_ids();
    tokens->Assign(ids.begin() + chunk * size, ids.begin() + (chunk + 1) * size);
    if (!bos.empty()) tokens->Set(0, bos[0]);
    int64_t token = 1;
    const auto add = [&](const proto::PositionLogprobs& position) {
      if (token++ > size / 2) surprise.Add(-position.logprob());
    };
    RETURN_IF_ERROR(ScorePrompt(client, part, 0, add).status());
    after.push_back(std::exp(surprise.mean()));
    std::fprintf(stderr, "[%lld of %lld] perplexity so far %.4f\n", static_cast<long long>(chunk + 1),
                 static_cast<long long>(chunks), std::exp(surprise.mean()));
  }
  const double perplexity = std::exp(surprise.mean()), error = perplexity * surprise.standard_error();
  if (options.json) {
    const nlohmann::json result = {
        {"perplexity", perplexity}, {"standard_error", error}, {"tokens", surprise.count()}, {"after_chunk", after}};
    std::printf("%s\n", result.dump().c_str());
  } else {
    std::printf("%lld tokens of %lld chunks, perplexity %.4f +/- %.4f\n", static_cast<long long>(surprise.count()),
                static_cast<long long>(chunks), perplexity, error);
  }
  return absl::OkStatus();
}

absl::Status Score(const ScoreOptions& options) {
  proto::GenerateRequest request;
  RETURN_IF_ERROR(options.model.CheckOutputs({options.prompt.file.value_or(""), options.prompt.ids_file.value_or("")}));
  RETURN_IF_ERROR(options.prompt.Fill(request));
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(options.server, options.model));
  RETURN_IF_ERROR(options.chunks ? ScoreChunks(*client, request, options) : ScoreWhole(*client, request, options));
  return client->Close();
}

}  // namespace

Command AddScore(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  options->model.AddWithServer(app, options->server, "use the coordinator at this address instead of starting one");
  options->prompt.AddTo(app);
  AddInteger(app, "--top", options->top, {.max = 20}, "with --json: also this many best tokens at each position");
  AddInteger(app, "--chunks", options->chunks, {.max = 1'000'000, .automatic = 0},
             "score a long text as llama-perplexity does, the second half of each of so many chunks; 0 or -1: of all")
      ->excludes(app.get_option("--top"));
  AddInteger(app, "--chunk-size", options->chunk_size, {.min = 4, .max = int64_t{1} << 30, .units = true},
             "tokens of a chunk (default 512)");
  AddSwitch(
      app, "--json", options->json,
      "print {\"logprobs\": [...], \"perplexity\": x}; with --chunks {\"perplexity\", \"standard_error\", \"tokens\", ...}");
  app.footer(Examples({"ferry score -m model.gguf -f chapter.txt", "ferry score -m model.gguf -f wiki.test.raw --chunks 32",
                       "ferry score -m model.gguf --ids ids.txt --json"}));
  return [options]() -> absl::Status {
    if (options->server.empty() == options->model.model.empty())
      return InvalidArgument("give -m FILE, or --server ADDR of a running coordinator");
    return Score(*options);
  };
}

}  // namespace ferry
