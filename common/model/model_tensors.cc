#include "common/model/model_tensors.h"

#include <algorithm>
#include <initializer_list>
#include <string>

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
    return Unimplemented(
        "%s: tensor '%s' is of type %s, which Ferry does not compute with; it takes F32, F16, BF16, "
        "Q8_0, Q4_0 and MXFP4 (data at byte %d)",
        file.path(), name, NameOf(tensor->dtype), tensor->file_offset);
  }
  return tensor;
}

}  // namespace

std::span<const std::byte> ExpertPart::Of(int64_t expert) const {
  const uint64_t row_bytes = tensor->bytes() / static_cast<uint64_t>(tensor->rows() * tensor->cols() / cols);
  const uint64_t begin = static_cast<uint64_t>(expert * tensor_rows + first_row) * row_bytes;
  return tensor->data.subspan(begin, static_cast<uint64_t>(rows) * row_bytes);
}

absl::StatusOr<ExpertTensors> ExpertTensorsOf(const ModelConfig& config, const GgufFile& file, int64_t layer) {
  const int64_t embd = config.n_embd, ff = config.n_ff, experts = config.num_experts;
  const auto name = [&](std::string_view rest) { return absl::StrFormat("blk.%d.ffn_%s", layer, rest); };
  ExpertTensors parts;
  if (file.FindTensor(name("gate_up_exps.weight")) != nullptr) {
    ASSIGN_OR_RETURN(const TensorInfo* const weight,
                     FindChecked(file, name("gate_up_exps.weight"), {embd, 2 * ff, experts}, /*want_f32=*/false));
    ASSIGN_OR_RETURN(const TensorInfo* const bias,
                     FindChecked(file, name("gate_up_exps.bias"), {2 * ff, experts}, /*want_f32=*/true));
    parts.gate = {weight, ff, embd, 0, 2 * ff};
    parts.up = {weight, ff, embd, ff, 2 * ff};
    parts.gate_bias = {bias, ff, 1, 0, 2 * ff};
    parts.up_bias = {bias, ff, 1, ff, 2 * ff};
  } else {
    for (const auto& [part, bias_part, kind] :
         {std::tuple{&parts.gate, &parts.gate_bias, "gate"}, std::tuple{&parts.up, &parts.up_bias, "up"}}) {
      const std::string tensor_name = name(absl::StrFormat("%s_exps", kind));
      ASSIGN_OR_RETURN(const TensorInfo* const weight,
                       FindChecked(file, tensor_name + ".weight", {embd, ff, experts}, /*want_f32=*/false));
      ASSIGN_OR_RETURN(const TensorInfo* const bias, FindChecked(file, tensor_name + ".bias", {ff, experts}, /*want_f32=*/true));
      *part = {weight, ff, embd, 0, ff};
      *bias_part = {bias, ff, 1, 0, ff};
    }
  }
  ASSIGN_OR_RETURN(const TensorInfo* const weight,
                   FindChecked(file, name("down_exps.weight"), {ff, embd, experts}, /*want_f32=*/false));
  ASSIGN_OR_RETURN(const TensorInfo* const bias, FindChecked(file, name("down_exps.bias"), {embd, experts}, /*want_f32=*/true));
  parts.down = {weight, embd, ff, 0, embd};
  parts.down_bias = {bias, embd, 1, 0, embd};
  return parts;
}

absl::StatusOr<const TensorInfo*> FindDense(const ModelConfig& config, const GgufFile& file, const DenseTensor& dense) {
  const bool tied = dense.role == TensorRole::kOutput && file.FindTensor(dense.name) == nullptr;
  const std::string_view name = tied ? std::string_view("token_embd.weight") : std::string_view(dense.name);
  return FindChecked(file, name, {dense.cols, dense.rows}, /*want_f32=*/!dense.is_matrix);
}

absl::Status CheckModelTensors(const ModelConfig& config, const GgufFile& file) {
  for (const DenseTensor& dense : DenseTensorsOf(config, 0, config.num_layers)) {
    RETURN_IF_ERROR(FindDense(config, file, dense).status());
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    RETURN_IF_ERROR(ExpertTensorsOf(config, file, layer).status());
  }
  return absl::OkStatus();
}

}  // namespace ferry
