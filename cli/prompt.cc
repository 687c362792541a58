#include "cli/prompt.h"

#include <unistd.h>

#include <fstream>
#include <iostream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace ferry {

void PromptOptions::AddTo(CLI::App& app) {
  const char* const group = "Prompt";
  app.add_option("-p,--prompt", text, "the text")->group(group);
  app.add_option("-f,--file", file, "file with the text; -: standard input")->group(group);
  app.add_option("--ids", ids_file, "file with token ids instead of text")->group(group);
  app.add_flag("--no-bos", no_bos, "do not add the beginning-of-text token that the model file asks for")->group(group);
}

absl::Status PromptOptions::Fill(ferry::v1::GenerateRequest& request) const {
  const int given = !text.empty() + !file.empty() + !ids_file.empty();
  if (given > 1) return InvalidArgument("-p, -f and --ids say the prompt: give one of them");
  if (no_bos) request.set_add_bos(false);
  if (!ids_file.empty()) {
    ASSIGN_OR_RETURN(const std::string content, ReadAll(ids_file));
    ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseIds(content));
    request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    return absl::OkStatus();
  }
  if (!text.empty()) {
    request.set_text(text);
    return absl::OkStatus();
  }
  if (file.empty() && isatty(STDIN_FILENO) != 0) return InvalidArgument("no prompt: give -p TEXT, -f FILE or --ids FILE");
  ASSIGN_OR_RETURN(*request.mutable_text(), ReadAll(file.empty() ? "-" : file));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("cannot read '%s'", path);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

absl::StatusOr<std::vector<uint32_t>> ParseIds(const std::string& text) {
  std::vector<uint32_t> ids;
  for (const absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\r\n[]"), absl::SkipEmpty())) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) return InvalidArgument("'%s' is not a token id", word.substr(0, 40));
    ids.push_back(id);
  }
  return ids;
}

}  // namespace ferry
