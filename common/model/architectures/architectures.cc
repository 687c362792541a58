#include "common/model/architectures/architectures.h"

namespace ferry {

std::span<const Architecture> Architectures() {
  static constexpr Architecture kArchitectures[] = {
      {"deepseek2", ReadDeepseek2}, {"glm4moe", ReadGlm4Moe},   {"gpt-oss", ReadGptOss},
      {"qwen35moe", ReadQwen35Moe}, {"qwen3moe", ReadQwen3Moe}, {"qwen3next", ReadQwen3Next},
  };
  return kArchitectures;
}

}  // namespace ferry
