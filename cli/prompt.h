#pragma once

// A command's prompt: -p TEXT, -f FILE, --ids FILE, or standard input.

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

struct PromptOptions {
  std::optional<std::string> text, file, ids_file;  // at most one; an empty text is a prompt too
  bool no_bos = false;
  bool escapes = false;  // \n and the like in `text` are read

  void AddTo(CLI::App& app);
  // InvalidArgument: none of the flags is given, or the file of ids has other text.
  absl::Status Fill(ferry::v1::GenerateRequest& request) const;
};

// `text` with \n, \r, \t, \\, \', \" and \xHH replaced by what they say; other backslashes stay.
std::string WithEscapesRead(const std::string& text);
// A whole file; "-": standard input. NotFound, or FailedPrecondition, names it: it is not there, or a folder, or cannot be read.
// InvalidArgument: it is larger than any prompt.
absl::StatusOr<std::string> ReadAll(const std::string& path);
// Numbers of tokens: "512,2048", "4k". InvalidArgument names `flag`: anything else, or less than `min`.
absl::StatusOr<std::vector<int64_t>> ParseLengths(const std::string& flag, const std::string& text, int64_t min = 1);
// Numbers separated by spaces, commas, new lines or brackets.
absl::StatusOr<std::vector<uint32_t>> ParseIds(const std::string& text);

}  // namespace ferry
