// `ferry make-model`: a model of any shape with random weights.

#include "common/model/make_model.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <random>

#include "absl/strings/match.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/late_word.h"
#include "common/command_line.h"
#include "common/deadline.h"
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
  bool force = false;
  std::optional<uint64_t> seed = 1;  // none: random
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
  model.seed = options.seed ? *options.seed : std::random_device()();
  ASSIGN_OR_RETURN(model.expert_dtype, ParseType(options.expert_type));
  ASSIGN_OR_RETURN(model.dense_dtype, ParseType(options.dense_type));
  const Stopwatch making;
  const LateWord word("writing " + options.path);
  RETURN_IF_ERROR(MakeModelFile(model, options.path, {.num_threads = DefaultThreads(), .force = options.force}));
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.path));
  const double seconds = making.Seconds();
  std::fprintf(stderr, "%s: %s in %.1f s, %s\n", options.path.c_str(), HumanBytes(file.file_bytes()).c_str(), seconds,
               HumanRate(file.file_bytes() / seconds).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddMakeModel(CLI::App& app) {
  auto options = std::make_shared<Options>();
  AddText(app, "path", options->path, "file to write")->required();
  std::vector<const char*> published;
  static const std::vector<std::string> names = MakeModelOptions::Names();
  for (const std::string& name : names) published.push_back(name.c_str());
  AddChoice(app, "--like", options->like, published,
            "start from a published model's shape (20b and 120b are gpt-oss's) instead of a tiny one");
  const auto dimension = [&](const char* flag, int64_t& target, const char* what) {
    AddInteger(app, flag, target, {.min = 1, .max = 1 << 24, .units = true}, what);
  };
  dimension("--layers", options->layers, "layers");
  dimension("--experts", options->experts, "experts of a layer");
  dimension("--top-k", options->top_k, "experts that a token uses");
  dimension("--n-embd", options->n_embd, "width of the hidden states");
  dimension("--n-ff", options->n_ff, "width inside an expert");
  dimension("--heads", options->heads, "attention heads");
  dimension("--kv-heads", options->kv_heads, "heads of keys and values");
  dimension("--head-dim", options->head_dim, "width of a head");
  dimension("--vocab", options->vocab, "tokens of the vocabulary");
  dimension("--context", options->context, "tokens of the context");
  AddInteger(app, "--sliding-window", options->window, {.max = 1 << 24, .units = true}, "tokens that sliding layers see; 0: all");
  AddText(app, "--expert-type", options->expert_type,
          "any type that Ferry computes with, such as mxfp4, q4_k, iq4_xs or q8_0 (default mxfp4)");
  AddText(app, "--dense-type", options->dense_type, "of attention, embedding and output (default q8_0)");
  AddDecimal(app, "--router-bias-spread", options->bias_spread, 0, 1000,
             "standard deviation: how unevenly experts are used (default 0)");
  AddSwitch(app, "--force", options->force, "replace the file if it exists");
  AddSeed(app, "--seed", options->seed, "of the weights (default 1; -1: a random one)");
  app.footer(Examples({"ferry make-model bench.gguf --like 20b --layers 4 --router-bias-spread 1.5"}));
  return [options] { return MakeModel(*options); };
}

}  // namespace ferry
