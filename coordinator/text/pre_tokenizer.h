#pragma once

// Cuts text into the pieces within which byte-pair merges happen, by the patterns that a model was trained with.
//
// A pre-tokenizer is a list of patterns. The first cuts the text into its matches and what lies between them; the next
// does the same with each of those pieces on its own, as if the piece were the whole text; and so on.
//
// PCRE2's tables say which characters are letters or digits. Characters that Unicode assigned after them differ from newer
// tokenizers: "Text and tokens" in docs/operations.md.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace ferry {

class PreTokenizer {
 public:
  // By tokenizer.ggml.pre. Unimplemented: a name that Ferry does not know; the message lists those it does.
  static absl::StatusOr<PreTokenizer> Create(std::string_view name);
  // The names that Create knows, for messages: "deepseek-coder, deepseek-llm, ...".
  static std::string KnownNames();

  PreTokenizer(PreTokenizer&&) = default;
  PreTokenizer& operator=(PreTokenizer&&) = default;

  // The pieces of `text`, in order; together they are `text`, none is empty. Views into `text`, which must be valid
  // UTF-8. Linear time for every text. Any thread. Internal: PCRE2 gave up, which no text is known to cause.
  absl::StatusOr<std::vector<std::string_view>> Split(std::string_view text) const;

 private:
  struct CodeDeleter {
    void operator()(void* code) const;
  };
  PreTokenizer() = default;

  std::vector<std::unique_ptr<void, CodeDeleter>> patterns_;  // pcre2_code, compiled with JIT where PCRE2 has it
};

}  // namespace ferry
