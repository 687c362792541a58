#pragma once

// The table of architectures: one reader each, which turns a file's metadata and tensor names into a ModelConfig.

#include <span>
#include <string_view>

#include "common/model/architectures/model_keys.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

struct Architecture {
  std::string_view name;  // general.architecture
  absl::StatusOr<ModelConfig> (*read)(const ModelKeys& keys);
};
std::span<const Architecture> Architectures();

absl::StatusOr<ModelConfig> ReadDeepseek2(const ModelKeys& keys);
absl::StatusOr<ModelConfig> ReadGlm4Moe(const ModelKeys& keys);
absl::StatusOr<ModelConfig> ReadGptOss(const ModelKeys& keys);
absl::StatusOr<ModelConfig> ReadQwen35Moe(const ModelKeys& keys);
absl::StatusOr<ModelConfig> ReadQwen3Moe(const ModelKeys& keys);
absl::StatusOr<ModelConfig> ReadQwen3Next(const ModelKeys& keys);

}  // namespace ferry
