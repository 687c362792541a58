// `ferry tokenize` and `ferry detokenize`: from a file alone, no server.

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/prompt.h"
#include "common/command_line.h"
#include "common/gguf/gguf.h"
#include "coordinator/text/tokenizer.h"

namespace ferry {
namespace {

struct TokenizeOptions {
  std::string model;
  std::optional<std::string> text, file;  // an empty text is one too
  bool ids = false, no_bos = false, no_special = false;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& model) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(model));
  return Tokenizer::FromGguf(file);
}

absl::StatusOr<std::string> TextOf(const TokenizeOptions& options) {
  if (options.text && options.file) return InvalidArgument("-p and -f both say the text: give one of them");
  if (options.text) return *options.text;
  return ReadAll(options.file.value_or("-"));
}

absl::Status Tokenize(const TokenizeOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, OpenTokenizer(options.model));
  ASSIGN_OR_RETURN(const std::string text, TextOf(options));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   tokenizer->Encode(text, {.add_bos = !options.no_bos, .parse_special = !options.no_special}));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (options.ids) {
      std::printf(i == 0 ? "%d" : " %d", ids[i]);
    } else {
      const int32_t one[] = {ids[i]};
      ASSIGN_OR_RETURN(const std::string piece, tokenizer->Decode(one, /*render_special=*/true));
      std::printf("%6d -> '%s'\n", ids[i], piece.c_str());
    }
  }
  if (options.ids) std::printf("\n");
  return absl::OkStatus();
}

absl::Status Detokenize(const TokenizeOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, OpenTokenizer(options.model));
  ASSIGN_OR_RETURN(const std::string text, TextOf(options));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseIds(text));
  ASSIGN_OR_RETURN(const std::string decoded,
                   tokenizer->Decode(std::vector<int32_t>(ids.begin(), ids.end()), !options.no_special));
  std::fwrite(decoded.data(), 1, decoded.size(), stdout);
  return absl::OkStatus();
}

}  // namespace

Command AddTokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  AddText(app, "-m,--model", options->model, "GGUF file; one that holds a vocabulary alone will do")->required();
  AddText(app, "-p,--prompt", options->text, "the text");
  AddText(app, "-f,--file", options->file, "file with the text; default or -: standard input");
  AddSwitch(app, "--ids", options->ids, "print only the ids, on one line");
  AddSwitch(app, "--no-bos", options->no_bos, "do not begin with the beginning-of-text token");
  AddSwitch(app, "--no-parse-special", options->no_special, "read special tokens in the text as plain text");
  return [options] { return Tokenize(*options); };
}

Command AddDetokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  AddText(app, "-m,--model", options->model, "GGUF file; one that holds a vocabulary alone will do")->required();
  AddText(app, "-p,--ids", options->text, "the ids, separated by spaces or commas");
  AddText(app, "-f,--file", options->file, "file with the ids; default or -: standard input");
  AddSwitch(app, "--no-special", options->no_special, "omit special tokens");
  return [options] { return Detokenize(*options); };
}

}  // namespace ferry
