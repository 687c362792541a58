// `ferry inspect`: what a model file holds.

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/commands.h"
#include "common/command_line.h"
#include "common/escaped.h"
#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/model/model_tensors.h"
#include "coordinator/planning/placement.h"

namespace ferry {
namespace {

struct InspectOptions {
  std::string model;
  bool json = false, tensors = false;
};

std::string Text(std::string_view text) { return std::string(text); }

const char* AttentionName(const LayerConfig& layer) {
  if (layer.attention.latent()) return "latent";
  if (layer.attention.delta()) return "delta";
  return layer.slides() ? "sliding" : "full";
}

// Of the first layer with keys and values.
const AttentionConfig& ToldAttention(const ModelConfig& config) {
  const auto with_keys =
      std::find_if(config.layers.begin(), config.layers.end(), [](const LayerConfig& layer) { return !layer.attention.delta(); });
  return with_keys == config.layers.end() ? config.layers[0].attention : with_keys->attention;
}

nlohmann::json Describe(const GgufFile& file, const ModelConfig& config, const ModelSizes& sizes, const ArenaLayout& arena) {
  const AttentionConfig& attention = ToldAttention(config);
  nlohmann::json types = nlohmann::json::object();
  for (const TensorInfo& tensor : file.tensors()) {
    nlohmann::json& row = types[Text(NameOf(tensor.dtype))];
    if (row.is_null()) row = {{"tensors", 0}, {"bytes", uint64_t{0}}};
    row["tensors"] = row["tensors"].get<int64_t>() + 1;
    row["bytes"] = row["bytes"].get<uint64_t>() + tensor.bytes();
  }
  nlohmann::json layers = nlohmann::json::array();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const ExpertLayout& expert = arena.layer(layer);
    nlohmann::json row = {{"layer", layer},
                          {"attention", AttentionName(config.layers[layer])},
                          {"dense_bytes", sizes.dense_bytes[layer]},
                          {"expert_bytes", sizes.expert_bytes[layer]},
                          {"expert_record_bytes", expert.bytes}};
    if (config.layers[layer].mlp) row["mlp_n_ff"] = config.layers[layer].mlp->n_ff;
    if (config.layers[layer].experts) {
      row["gate_type"] = Text(NameOf(expert.gate.dtype));
      row["up_type"] = Text(NameOf(expert.up.dtype));
      row["down_type"] = Text(NameOf(expert.down.dtype));
    }
    layers.push_back(std::move(row));
  }
  return {{"file",
           {{"path", file.path()},
            {"version", file.version()},
            {"shards", file.num_shards()},
            {"bytes", file.file_bytes()},
            {"tensors", file.tensors().size()},
            {"metadata_entries", file.entries().size()}}},
          {"model",
           {{"architecture", config.architecture},
            {"name", config.name},
            {"layers", config.num_layers},
            {"context_length", config.context_length},
            {"n_embd", config.n_embd},
            {"vocab_size", config.vocab_size},
            {"heads", attention.num_heads},
            {"kv_heads", attention.num_kv_heads},
            {"head_dim", attention.head_dim},
            {"experts", config.router.num_experts},
            {"top_k", config.router.top_k},
            {"n_ff", config.expert.n_ff},
            {"sliding_window", config.sliding_window()},
            {"rope_freq_base", attention.rope.freq_base},
            {"yarn_factor", attention.rope.yarn_factor},
            {"yarn_original_context", attention.rope.yarn_original_context}}},
          {"bytes", {{"embedding", sizes.embedding_bytes}, {"output", sizes.output_bytes}, {"experts", arena.bytes()}}},
          {"layers", std::move(layers)},
          {"types", std::move(types)}};
}

void Print(const GgufFile& file, const ModelConfig& config, const ModelSizes& sizes, const ArenaLayout& arena) {
  std::printf("%s: GGUF %u, %d file%s, %s, %zu tensors\n", Escaped(file.path()).c_str(), file.version(), file.num_shards(),
              file.num_shards() == 1 ? "" : "s", HumanBytes(file.file_bytes()).c_str(), file.tensors().size());
  const AttentionConfig& attention = ToldAttention(config);
  std::printf("%s %s: %lld layers, n_embd %lld, %lld/%lld heads of %lld, vocabulary %lld, context %lld, sliding window %lld\n",
              Escaped(config.architecture).c_str(), Escaped(config.name).c_str(), static_cast<long long>(config.num_layers),
              static_cast<long long>(config.n_embd), static_cast<long long>(attention.num_heads),
              static_cast<long long>(attention.num_kv_heads), static_cast<long long>(attention.head_dim),
              static_cast<long long>(config.vocab_size), static_cast<long long>(config.context_length),
              static_cast<long long>(config.sliding_window()));
  std::printf("experts: %lld a layer, top-%lld, n_ff %lld; one is %s, all are %s\n\n",
              static_cast<long long>(config.router.num_experts), static_cast<long long>(config.router.top_k),
              static_cast<long long>(config.expert.n_ff), HumanBytes(arena.max_record_bytes()).c_str(),
              HumanBytes(arena.bytes()).c_str());
  std::printf("%-10s %-9s %12s %12s  %s\n", "layer", "attention", "dense", "experts", "types of gate, up, down");
  std::printf("%-10s %-9s %12s\n", "embedding", "", HumanBytes(sizes.embedding_bytes).c_str());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const ExpertLayout& expert = arena.layer(layer);
    const LayerConfig& parts = config.layers[layer];
    std::string types = "none: the layer is dense";
    if (parts.experts) {
      types = Text(NameOf(expert.gate.dtype)) + ", " + Text(NameOf(expert.up.dtype)) + ", " + Text(NameOf(expert.down.dtype));
      if (parts.mlp) types += absl::StrFormat("; and a shared expert of %d", parts.mlp->n_ff);
    }
    std::printf("%-10lld %-9s %12s %12s  %s\n", static_cast<long long>(layer), AttentionName(parts),
                HumanBytes(sizes.dense_bytes[layer]).c_str(), HumanBytes(sizes.expert_bytes[layer]).c_str(), types.c_str());
  }
  std::printf("%-10s %-9s %12s\n", "output", "", HumanBytes(sizes.output_bytes).c_str());
}

absl::Status Inspect(const InspectOptions& options) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model));
  if (options.tensors) {
    for (const TensorInfo& tensor : file.tensors()) {
      std::printf("%-40s %-8s %-24s %12s\n", Escaped(tensor.name).c_str(), Text(NameOf(tensor.dtype)).c_str(),
                  DimsToString(tensor).c_str(), HumanBytes(tensor.bytes()).c_str());
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromGguf(file));
  ASSIGN_OR_RETURN(const ArenaLayout arena, ArenaLayoutOf(file, config));
  ASSIGN_OR_RETURN(const ModelSizes sizes, ModelSizesOf(file, config));
  if (options.json) {
    // A name in the file may be any bytes: those that are not UTF-8 must not make the output unreadable.
    std::printf("%s\n",
                Describe(file, config, sizes, arena).dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    Print(file, config, sizes, arena);
  }
  return absl::OkStatus();
}

}  // namespace

Command AddInspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  AddText(app, "-m,--model,model", options->model, "GGUF file, or any file of a split model")->required();
  AddSwitch(app, "--json", options->json, "print JSON");
  AddSwitch(app, "--tensors", options->tensors, "list every tensor");
  return [options] { return Inspect(*options); };
}

}  // namespace ferry
