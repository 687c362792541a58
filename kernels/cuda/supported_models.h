#pragma once

// What the CUDA backend cannot compute of a model.

#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry::cuda {

// Ops::CheckModel on the current device.
absl::Status CheckCudaModel(const ModelConfig& model);

}  // namespace ferry::cuda
