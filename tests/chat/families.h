#pragma once

// The families of models that have a template of Ferry's own, and the special tokens by which each is known.

#include <string>
#include <vector>

namespace ferry {

struct Family {
  const char* name;
  const char* architecture;
  std::vector<std::string> tokens;
};

inline std::vector<Family> Families() {
  return {{"Kimi", "deepseek2", {"<|im_middle|>", "<|im_end|>"}},
          {"DeepSeekV3", "deepseek2", {"<｜tool▁calls▁begin｜>"}},
          {"DeepSeekV31", "deepseek2", {"<｜tool▁calls▁begin｜>", "<｜search▁begin｜>"}},
          {"Glm", "glm4moe", {"[gMASK]"}},
          {"Qwen3", "qwen3moe", {"<|im_start|>", "<tool_call>"}},
          {"Qwen3Next", "qwen3next", {"<|im_start|>", "<tool_call>"}},
          {"Qwen35", "qwen35moe", {"<|im_start|>", "<tool_call>"}},
          {"GptOss", "gpt-oss", {}}};
}

}  // namespace ferry
