#pragma once

// The tensors of a model, found in its file and checked against its hyper-parameters: names, shapes and types.

#include <cstdint>
#include <span>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

// One matrix, or one bias vector, of each expert of a layer, where it lies in the file. Borrows from the GgufFile.
//
//   tensor       [experts, tensor_rows, cols]; a bias has rows of one element: [experts, tensor_rows, 1]
//   first_row    where this part begins among an expert's tensor_rows: 0, or n_ff for `up` in a merged tensor
struct ExpertPart {
  const TensorInfo* tensor = nullptr;
  int64_t rows = 0;  // of one expert
  int64_t cols = 0;
  int64_t first_row = 0;
  int64_t tensor_rows = 0;

  DType dtype() const { return tensor->dtype; }
  // The part of one expert, contiguous: rows x cols elements. `expert` is in [0, num_experts).
  std::span<const std::byte> Of(int64_t expert) const;
};

// The experts of one layer that has some: out = down * glu(gate * x + gate_bias, up * x + up_bias) + down_bias.
struct ExpertTensors {
  ExpertPart gate, up;                       // [n_ff, n_embd]
  ExpertPart down;                           // [n_embd, n_ff]
  ExpertPart gate_bias, up_bias, down_bias;  // F32 [n_ff], [n_ff], [n_embd]; of no tensor in models without them
};

// InvalidArgument names the tensor that is missing or of another shape, and what it should be.
// Unimplemented names the tensor whose type Ferry does not compute with (dtype.h), and the type.
absl::StatusOr<ExpertTensors> ExpertTensorsOf(const ModelConfig& config, const GgufFile& file, int64_t layer);

// The tensor of `dense`; for kOutput the token embedding where the file has no output.weight. Errors as above.
absl::StatusOr<const TensorInfo*> FindDense(const ModelConfig& config, const GgufFile& file, const DenseTensor& dense);

// Whether the file holds every tensor of the model and no other: a tensor that Ferry ignores would change the results. Errors
// as above.
absl::Status CheckModelTensors(const ModelConfig& config, const GgufFile& file);

// Device memory that a tensor of this type takes with the worker that has it.
absl::StatusOr<int64_t> DenseBytes(const ModelConfig& config, const DenseTensor& dense, DType dtype);

// Where the experts of the file's tensors will lie. Errors as above.
absl::StatusOr<ArenaLayout> ArenaLayoutOf(const GgufFile& file, const ModelConfig& config);

}  // namespace ferry
