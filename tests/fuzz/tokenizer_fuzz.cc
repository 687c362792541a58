// Texts and vocabularies as an attacker would write them.
//
// Byte 0 chooses the pre-tokenizer and the target. Text: the rest is encoded with a fixed vocabulary; decoding must
// give it back. Vocabulary: lines of tokens and merges become a vocabulary, which must be refused or encode a text.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/generation/stop_matcher.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tiny_vocabulary.h"

namespace ferry {
namespace {

constexpr const char* kPreTokenizers[] = {"gpt-2",       "gpt-4o",    "qwen2",  "deepseek-llm", "deepseek-coder",
                                          "deepseek-v3", "llama-bpe", "falcon", "starcoder",    "glm4"};

void Require(bool holds) {
  if (!holds) std::abort();
}

const Tokenizer& TextTokenizer(size_t pre_tokenizer) {
  static const auto& tokenizers = *[] {
    auto* all = new std::vector<std::unique_ptr<Tokenizer>>;
    for (const char* name : kPreTokenizers) {
      VocabularyData data = TinyVocabulary({"Ġ t", "h e", "Ġt he", "a a", "aa aa", "Ġ Ġ", "Ċ Ċ", "Ã ©", "ï ¿", "1 2"},
                                           {{"<|end|>", TokenType::kControl}, {"<u>", TokenType::kUserDefined}});
      data.pre = name;
      all->push_back(*Tokenizer::Create(data));
    }
    return all;
  }();
  return *tokenizers[pre_tokenizer];
}

void FuzzText(size_t pre_tokenizer, bool parse_special, std::string_view text) {
  const Tokenizer& tokenizer = TextTokenizer(pre_tokenizer);
  const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, {.parse_special = parse_special});
  Require(ids.ok());
  std::string valid;
  AppendWithReplacements(text, &valid);
  Require(*tokenizer.Decode(*ids, /*render_special=*/true) == valid);
  Detokenizer detokenizer(&tokenizer, /*render_special=*/true);
  absl::StatusOr<StopMatcher> stops = StopMatcher::Create({"the", "aab", "\n\n"});
  std::string shown;
  for (const int32_t id : *ids) {
    const std::string piece = detokenizer.Push(id);
    Require(IsValidUtf8(piece));
    const StopMatcher::Result result = stops->Push(piece);
    Require(IsValidUtf8(result.text));
    shown += result.text;
    if (result.stop) break;
  }
  shown += stops->Flush();
  Require(valid.compare(0, shown.size(), shown) == 0);
}

void FuzzVocabulary(size_t pre_tokenizer, std::string_view text) {
  VocabularyData data = TinyVocabulary({});
  data.pre = kPreTokenizers[pre_tokenizer];
  // Lines: "T<type>token", "M<merge>", "D" drops the last token, "B<digits>" sets bos; anything else is a token.
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.size() >= 2 && line[0] == 'T') {
      data.tokens.emplace_back(line.substr(2));
      data.token_types.push_back(line[1] - '0');
    } else if (!line.empty() && line[0] == 'M') {
      data.merges.emplace_back(line.substr(1));
    } else if (line == "D" && !data.tokens.empty()) {
      data.tokens.pop_back();
      data.token_types.pop_back();
    } else if (!line.empty() && line[0] == 'B') {
      data.bos = std::strtoll(std::string(line.substr(1)).c_str(), nullptr, 10);
      data.add_bos = true;
    } else {
      data.tokens.emplace_back(line);
      data.token_types.push_back(1);
    }
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(data);
  if (!tokenizer.ok()) return;
  const absl::StatusOr<std::vector<int32_t>> ids = (*tokenizer)->Encode(text, {.parse_special = true});
  if (!ids.ok()) return;
  Require((*tokenizer)->Decode(*ids, /*render_special=*/true).ok());
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(bytes) + 1, size - 1);
  const size_t pre_tokenizer = bytes[0] % std::size(ferry::kPreTokenizers);
  if (bytes[0] & 0x80) {
    ferry::FuzzVocabulary(pre_tokenizer, rest);
  } else {
    ferry::FuzzText(pre_tokenizer, (bytes[0] & 0x40) != 0, rest);
  }
  return 0;
}
