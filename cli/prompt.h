#pragma once

// A command's prompt: -p TEXT, -f FILE, --ids FILE, or standard input.

#include <CLI/CLI.hpp>
#include <string>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

struct PromptOptions {
  std::string text, file, ids_file;
  bool no_bos = false;

  void AddTo(CLI::App& app);
  // InvalidArgument: none or several of the flags are given, or the file of ids has other text.
  absl::Status Fill(ferry::v1::GenerateRequest& request) const;
};

// A whole file; "-": standard input. NotFound names it.
absl::StatusOr<std::string> ReadAll(const std::string& path);
// Numbers separated by spaces, commas, new lines or brackets.
absl::StatusOr<std::vector<uint32_t>> ParseIds(const std::string& text);

}  // namespace ferry
