#include "cli/prompt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"
#include "cli/late_word.h"
#include "common/command_line.h"
#include "common/number.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr size_t kMaxTextBytes = size_t{60} << 20;  // a message to the coordinator holds 64 MiB
constexpr int64_t kMaxLength = int64_t{1} << 30;    // tokens: no context is longer

}  // namespace

void PromptOptions::AddTo(CLI::App& app) {
  const char* const group = "Prompt";
  CLI::Option* const prompt = AddText(app, "-p,--prompt", text, "the text")->group(group);
  AddSwitch(app, "-e,--escape", escapes, "read \\n, \\t, \\\\ and \\x41 in -p as a program's text has them")->group(group);
  CLI::Option* const from_file = AddText(app, "-f,--file", file, "file with the text; -: standard input")->group(group);
  CLI::Option* const ids = AddText(app, "--ids", ids_file, "file with token ids instead of text")->group(group);
  prompt->excludes(from_file, ids);
  from_file->excludes(ids);
  AddSwitch(app, "--no-bos", no_bos, "do not add the beginning-of-text token that the model file asks for")->group(group);
}

absl::Status PromptOptions::Fill(ferry::v1::GenerateRequest& request) const {
  if (no_bos) request.set_add_bos(false);
  if (ids_file) {
    ASSIGN_OR_RETURN(const std::string content, ReadAll(*ids_file));
    ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseIds(content));
    request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    return absl::OkStatus();
  }
  if (text) {
    request.set_text(escapes ? WithEscapesRead(*text) : *text);
    if (!escapes && text->find("\\n") != std::string::npos) {
      std::fprintf(stderr, "note: -p has \\n as two characters; with -e it is a new line\n");
    }
    return absl::OkStatus();
  }
  if (!file && isatty(STDIN_FILENO) != 0) return InvalidArgument("no prompt: give -p TEXT, -f FILE or --ids FILE");
  ASSIGN_OR_RETURN(*request.mutable_text(), ReadAll(file.value_or("-")));
  return absl::OkStatus();
}

std::string WithEscapesRead(const std::string& text) {
  constexpr std::string_view kNames = "nrt\\'\"", kMeant = "\n\r\t\\'\"";
  std::string read;
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : '\0';
    if (const size_t which = kNames.find(next); next != '\0' && which != std::string_view::npos) {
      read.push_back(kMeant[which]);
      ++i;
      continue;
    }
    const bool hex = next == 'x' && i + 3 < text.size() && absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 2])) &&
                     absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 3]));
    if (hex) {
      read += absl::HexStringToBytes(text.substr(i + 2, 2));
      i += 3;
      continue;
    }
    read.push_back(text[i]);
  }
  return read;
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  const bool standard_input = path == "-";
  const std::string name = standard_input ? "standard input" : "'" + path + "'";
  const auto failed = [&](int error) -> absl::Status {
    if (error == ENOENT) return NotFound("cannot read %s: %s", name, std::strerror(error));
    return FailedPrecondition("cannot read %s: %s", name, std::strerror(error));
  };
  // A pipe may have nobody at its other end yet.
  const LateWord word("reading " + name + " to its end");
  const UniqueFd file(standard_input ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return failed(errno);
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  while (true) {
    const ssize_t got = ::read(file.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(errno);
    if (got == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
    if (text.size() > kMaxTextBytes)
      return InvalidArgument("%s has more than %d bytes, which no context holds", name, kMaxTextBytes);
  }
}

absl::StatusOr<std::vector<int64_t>> ParseLengths(const std::string& flag, const std::string& text, int64_t min) {
  std::vector<int64_t> lengths;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::StatusOr<int64_t> length = ParseInteger({part.data(), part.size()}, min, kMaxLength, /*units=*/true);
    if (!length.ok()) return InvalidArgument("%s has '%s', want numbers of tokens such as 512,2048", flag, part.substr(0, 40));
    lengths.push_back(*length);
  }
  return lengths;
}

absl::StatusOr<std::vector<uint32_t>> ParseIds(const std::string& text) {
  std::vector<uint32_t> ids;
  for (const absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\r\n[]"), absl::SkipEmpty())) {
    const absl::StatusOr<uint64_t> id = ParseUnsigned({word.data(), word.size()}, std::numeric_limits<uint32_t>::max());
    if (!id.ok()) return InvalidArgument("'%s' is not a token id", word.substr(0, 40));
    ids.push_back(static_cast<uint32_t>(*id));
  }
  return ids;
}

}  // namespace ferry
