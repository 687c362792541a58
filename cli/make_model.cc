// `ferry make-model`: a model of any shape with random weights.

#include "common/model/make_model.h"

#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "common/model/formats/formats.h"
#include "common/thread_pool.h"

namespace ferry {
namespace {

struct Options {
  MakeModelOptions model;
  std::string path, like, expert_type = "mxfp4", dense_type = "q8_0";
  // From the command line; 0: as in the shape that --like names.
  int64_t layers = 0, experts = 0, top_k = 0, n_embd = 0, n_ff = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, context = 0,
          window = -1;
  double bias_spread = 0;
  uint64_t seed = 1;
};

absl::StatusOr<DType> ParseType(const std::string& name) {
  std::optional<DType> found;
  ForEachFormat([&]<DType kType>() {
    if (absl::EqualsIgnoreCase(name, std::string(Format<kType>::kName))) found = kType;
  });
  if (found) return *found;
  return InvalidArgument("'%s' is not a type of weights: %s", name, ComputableTypes());
}

absl::Status MakeModel(const Options& options) {
  MakeModelOptions model;
  if (!options.like.empty()) {
    ASSIGN_OR_RETURN(model, MakeModelOptions::Like(options.like));
  }
  const auto take = [](int64_t& field, int64_t given) {
    if (given > 0) field = given;
  };
  take(model.layers, options.layers), take(model.experts, options.experts), take(model.top_k, options.top_k);
  take(model.n_embd, options.n_embd), take(model.n_ff, options.n_ff), take(model.heads, options.heads);
  take(model.kv_heads, options.kv_heads), take(model.head_dim, options.head_dim), take(model.vocab, options.vocab);
  take(model.context, options.context);
  if (options.window >= 0) model.sliding_window = options.window;
  model.router_bias_spread = options.bias_spread;
  model.seed = options.seed;
  ASSIGN_OR_RETURN(model.expert_dtype, ParseType(options.expert_type));
  ASSIGN_OR_RETURN(model.dense_dtype, ParseType(options.dense_type));
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(MakeModelFile(model, options.path, {.num_threads = static_cast<int>(UsablePhysicalCores().size())}));
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.path));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  std::fprintf(stderr, "%s: %s in %.1f s, %s\n", options.path.c_str(), HumanBytes(file.file_bytes()).c_str(), seconds,
               HumanRate(file.file_bytes() / seconds).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddMakeModel(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("path", options->path, "file to write")->required();
  app.add_option("--like", options->like,
                 "start from a published model's shape (20b and 120b are gpt-oss's) instead of a tiny one")
      ->check(CLI::IsMember(MakeModelOptions::Names()));
  app.add_option("--layers", options->layers);
  app.add_option("--experts", options->experts);
  app.add_option("--top-k", options->top_k);
  app.add_option("--n-embd", options->n_embd);
  app.add_option("--n-ff", options->n_ff);
  app.add_option("--heads", options->heads);
  app.add_option("--kv-heads", options->kv_heads);
  app.add_option("--head-dim", options->head_dim);
  app.add_option("--vocab", options->vocab);
  app.add_option("--context", options->context);
  app.add_option("--sliding-window", options->window);
  app.add_option("--expert-type", options->expert_type, "any type that Ferry computes with: mxfp4, q8_0, q4_0")
      ->capture_default_str();
  app.add_option("--dense-type", options->dense_type, "of attention, embedding and output")->capture_default_str();
  app.add_option("--router-bias-spread", options->bias_spread,
                 "standard deviation of the router's biases: how unevenly experts are used")
      ->capture_default_str();
  app.add_option("--seed", options->seed)->capture_default_str();
  app.footer(Examples({"ferry make-model bench.gguf --like 20b --layers 4 --router-bias-spread 1.5"}));
  return [options] { return MakeModel(*options); };
}

}  // namespace ferry
