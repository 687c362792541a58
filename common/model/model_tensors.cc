#include "common/model/model_tensors.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

namespace ferry {
namespace {

// The tensor, of these dims in ggml's order (trailing ones may be left out in the file), F32 or any computable type.
absl::StatusOr<const TensorInfo*> FindChecked(const GgufFile& file, std::string_view name, std::initializer_list<int64_t> dims,
                                              bool want_f32) {
  const TensorInfo* const tensor = file.FindTensor(name);
  if (tensor == nullptr) return InvalidArgument("%s: tensor '%s' is missing", file.path(), name);
  TensorInfo want{};
  want.num_dims = static_cast<int>(dims.size());
  want.dims.fill(1);
  std::copy(dims.begin(), dims.end(), want.dims.begin());
  if (tensor->dims != want.dims) {
    return InvalidArgument("%s: tensor '%s' is %s, want %s (data at byte %d)", file.path(), name, DimsToString(*tensor),
                           DimsToString(want), tensor->file_offset);
  }
  if (want_f32 && tensor->dtype != DType::kF32) {
    return Unimplemented("%s: tensor '%s' is of type %s; Ferry wants F32 there (data at byte %d)", file.path(), name,
                         NameOf(tensor->dtype), tensor->file_offset);
  }
  if (!InfoOf(tensor->dtype)->computable) {
    return Unimplemented("%s: tensor '%s' is of type %s, which Ferry does not compute with; it takes %s (data at byte %d)",
                         file.path(), name, NameOf(tensor->dtype), ComputableTypes(), tensor->file_offset);
  }
  return tensor;
}

// Of a layer that is not run: blk.N with N from num_layers on.
bool IsUnused(const ModelConfig& config, std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return false;
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' && layer >= config.num_layers &&
         layer < config.num_layers + config.num_unused_layers;
}

// Rows of the matrices that a worker makes of a tensor (worker/stage_weights.cc).
std::vector<int64_t> MatrixRows(const ModelConfig& config, const DenseTensor& dense) {
  if (dense.layer < 0) return {dense.rows};
  const AttentionConfig& attention = config.layers[dense.layer].attention;
  if (dense.role == TensorRole::kDeltaInput) return {attention.conv_channels(), attention.q_size()};
  const bool halves =
      dense.role == TensorRole::kDeltaBetaAndAlpha || (dense.role == TensorRole::kQueryWeight && attention.output_gate);
  if (halves) return {dense.rows / 2, dense.rows / 2};
  return {dense.rows / dense.heads};
}

}  // namespace

std::span<const std::byte> ExpertPart::Of(int64_t expert) const {
  const uint64_t row_bytes = tensor->bytes() / static_cast<uint64_t>(tensor->rows() * tensor->cols() / cols);
  const uint64_t begin = static_cast<uint64_t>(expert * tensor_rows + first_row) * row_bytes;
  return tensor->data.subspan(begin, static_cast<uint64_t>(rows) * row_bytes);
}

absl::StatusOr<ExpertTensors> ExpertTensorsOf(const ModelConfig& config, const GgufFile& file, int64_t layer) {
  const int64_t embd = config.n_embd, ff = config.expert.n_ff, experts = config.router.num_experts;
  // One tensor for all experts, and their biases. Each of `parts` takes `part_rows` rows of every expert.
  struct Part {
    ExpertPart* weight;
    ExpertPart* bias;
  };
  const auto find = [&](std::string_view kind, int64_t part_rows, int64_t cols,
                        std::initializer_list<Part> parts) -> absl::Status {
    const std::string name = absl::StrFormat("blk.%d.ffn_%s_exps", layer, kind);
    const int64_t rows = part_rows * static_cast<int64_t>(parts.size());
    ASSIGN_OR_RETURN(const TensorInfo* const weight,
                     FindChecked(file, name + ".weight", {cols, rows, experts}, /*want_f32=*/false));
    const TensorInfo* bias = nullptr;
    if (config.expert.bias) {
      ASSIGN_OR_RETURN(bias, FindChecked(file, name + ".bias", {rows, experts}, /*want_f32=*/true));
    }
    int64_t first_row = 0;
    for (const Part& part : parts) {
      *part.weight = {weight, part_rows, cols, first_row, rows};
      if (bias != nullptr) *part.bias = {bias, part_rows, 1, first_row, rows};
      first_row += part_rows;
    }
    return absl::OkStatus();
  };
  ExpertTensors tensors;
  const Part gate = {&tensors.gate, &tensors.gate_bias}, up = {&tensors.up, &tensors.up_bias};
  if (file.FindTensor(absl::StrFormat("blk.%d.ffn_gate_up_exps.weight", layer)) != nullptr) {
    RETURN_IF_ERROR(find("gate_up", ff, embd, {gate, up}));
  } else {
    RETURN_IF_ERROR(find("gate", ff, embd, {gate}));
    RETURN_IF_ERROR(find("up", ff, embd, {up}));
  }
  RETURN_IF_ERROR(find("down", embd, ff, {{&tensors.down, &tensors.down_bias}}));
  return tensors;
}

absl::StatusOr<const TensorInfo*> FindDense(const ModelConfig& config, const GgufFile& file, const DenseTensor& dense) {
  const bool tied = dense.role == TensorRole::kOutput && file.FindTensor(dense.name) == nullptr;
  const std::string_view name = tied ? std::string_view("token_embd.weight") : std::string_view(dense.name);
  const TensorInfo* const found = file.FindTensor(name);
  if (dense.heads > 1 && found != nullptr && found->num_dims == 3) {
    return FindChecked(file, name, {dense.cols, dense.rows / dense.heads, dense.heads}, /*want_f32=*/false);
  }
  return FindChecked(file, name, {dense.cols, dense.rows}, /*want_f32=*/!dense.is_matrix);
}

absl::StatusOr<int64_t> DenseBytes(const ModelConfig& config, const DenseTensor& dense, DType dtype) {
  if (!dense.is_matrix) return dense.rows * dense.cols * static_cast<int64_t>(sizeof(float));
  if (dense.role != TensorRole::kLatentKeyAndValueUp) {
    int64_t bytes = 0;
    for (const int64_t rows : MatrixRows(config, dense)) {
      ASSIGN_OR_RETURN(const TiledLayout layout, TiledLayout::Create(dtype, rows, dense.cols));
      bytes += dense.heads * layout.bytes;
    }
    return bytes;
  }
  // Its keys are transposed, which is in F32 (worker/stage_weights.cc).
  const AttentionConfig& attention = config.layers[dense.layer].attention;
  ASSIGN_OR_RETURN(const TiledLayout keys, TiledLayout::Create(DType::kF32, dense.cols, attention.nope_dim()));
  ASSIGN_OR_RETURN(const TiledLayout values, TiledLayout::Create(dtype, attention.value_dim, dense.cols));
  return dense.heads * (keys.bytes + values.bytes);
}

absl::Status CheckModelTensors(const ModelConfig& config, const GgufFile& file) {
  std::set<std::string_view> expected;
  std::vector<std::string> joined;
  for (const DenseTensor& dense : DenseTensorsOf(config, 0, config.num_layers)) {
    ASSIGN_OR_RETURN(const TensorInfo* const tensor, FindDense(config, file, dense));
    expected.insert(tensor->name);
    // Some files have the joined matrix beside its halves, which say the same.
    if (dense.role == TensorRole::kLatentKeyUp) joined.push_back(absl::StrFormat("blk.%d.attn_kv_b.weight", dense.layer));
  }
  expected.insert(joined.begin(), joined.end());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].experts) continue;
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
    for (const ExpertPart* part :
         {&tensors.gate, &tensors.up, &tensors.down, &tensors.gate_bias, &tensors.up_bias, &tensors.down_bias}) {
      if (part->tensor != nullptr) expected.insert(part->tensor->name);
    }
  }
  for (const TensorInfo& tensor : file.tensors()) {
    if (expected.contains(tensor.name) || IsUnused(config, tensor.name)) continue;
    return Unimplemented(
        "%s: tensor '%s' is none that a model of %s has, as far as Ferry knows: what it does would be left out "
        "(data at byte %d)",
        file.path(), tensor.name, config.architecture, tensor.file_offset);
  }
  return absl::OkStatus();
}

absl::StatusOr<ArenaLayout> ArenaLayoutOf(const GgufFile& file, const ModelConfig& config) {
  std::vector<std::optional<ExpertLayout>> layers;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].experts) {
      layers.emplace_back();
      continue;
    }
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
    ASSIGN_OR_RETURN(const ExpertLayout layout,
                     ExpertLayout::Create(tensors.gate.dtype(), tensors.up.dtype(), tensors.down.dtype(), config.n_embd,
                                          config.expert.n_ff, config.expert.bias));
    layers.push_back(layout);
  }
  return ArenaLayout::Create(std::move(layers), config.router.num_experts);
}

}  // namespace ferry
