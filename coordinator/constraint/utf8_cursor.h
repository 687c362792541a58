#pragma once

// Reads a pattern or a grammar character by character.

#include <cstdint>
#include <string_view>

#include "common/status.h"

namespace ferry::constraint {

class Utf8Cursor {
 public:
  explicit Utf8Cursor(std::string_view text) : text_(text) {}

  size_t position() const { return position_; }
  bool AtEnd() const { return position_ == text_.size(); }
  bool Looks(std::string_view prefix) const { return text_.substr(position_, prefix.size()) == prefix; }
  char Peek() const { return text_[position_]; }  // not at the end
  bool Take(char c) {
    if (AtEnd() || text_[position_] != c) return false;
    ++position_;
    return true;
  }
  std::string_view Since(size_t begin) const { return text_.substr(begin, position_ - begin); }

  // The next character. InvalidArgument: the text ends, or it is not UTF-8 here.
  absl::StatusOr<uint32_t> Next();
  // Hexadecimal digits, at least `min` and at most `max` (up to 8).
  absl::StatusOr<uint32_t> Hex(int min, int max);
  // {m}, {m,} or {m,n}; `max` is -1 for {m,}. False, and nothing is read, when there is no such thing here.
  // InvalidArgument: n < m, or a number above `limit`.
  absl::StatusOr<bool> Bounds(int32_t limit, int32_t* min, int32_t* max);

 private:
  bool Number(int64_t* number);

  std::string_view text_;
  size_t position_ = 0;
};

// InvalidArgument: `text` is not UTF-8. Every text of a constraint must be, since grammars mark special tokens by bytes that
// UTF-8 never has.
absl::Status CheckUtf8(std::string_view text);

}  // namespace ferry::constraint
