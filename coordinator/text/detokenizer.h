#pragma once

// Token ids to text as they are generated. A token may end inside a UTF-8 character: its bytes are held back until the
// character is complete, so every piece of text handed out is valid UTF-8, and all pieces joined are what
// Tokenizer::Decode gives for all ids.

#include <cstdint>
#include <string>

#include "coordinator/text/tokenizer.h"

namespace ferry {

class Detokenizer {
 public:
  // `tokenizer` must outlive this. Special tokens become their text with `render_special`, else nothing.
  Detokenizer(const Tokenizer* tokenizer, bool render_special) : tokenizer_(*tokenizer), render_special_(render_special) {}

  // The text that `id` completes, perhaps none. An id outside the vocabulary adds nothing (models' output matrices are
  // padded beyond it). What can no longer become UTF-8 is replaced by U+FFFD.
  std::string Push(int32_t id);
  // The end: the bytes held back become U+FFFD. Afterwards the detokenizer is as new.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool render_special_;
  std::string held_;  // the beginning of one character, at most 3 bytes
};

}  // namespace ferry
