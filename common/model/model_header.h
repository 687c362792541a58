#pragma once

// How a coordinator tells its workers what the model is: by what it read itself, the architecture's metadata and the names,
// shapes and types of all tensors (some KB). A worker runs the same reader with the same checks, so that no message knows an
// architecture.

#include <cstddef>
#include <span>
#include <string>

#include "common/gguf/gguf.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

std::string ModelHeaderOf(const GgufFile& file);

struct ModelDescription {
  ModelConfig config;
  ArenaLayout arena;
};
// InvalidArgument, Unimplemented: `header` is no GGUF header or none of a model that Ferry runs; as ModelConfig::FromGguf and
// CheckModelTensors.
absl::StatusOr<ModelDescription> ModelFromHeader(std::span<const std::byte> header);
inline constexpr size_t kMaxModelHeaderBytes = 3 << 20;  // a message holds 4 MiB

}  // namespace ferry
