#pragma once

// A text that knows, for every byte, whether a user wrote it. Marks follow the bytes through slices and concatenations.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "common/text_piece.h"

namespace ferry::jinja {

class MarkedString {
 public:
  struct Run {
    size_t end;  // the first byte behind it
    bool from_user;
  };

  MarkedString() = default;
  explicit MarkedString(std::string_view text, bool from_user = false) { Append(text, from_user); }

  std::string_view text() const { return text_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }
  // In order and without gaps; neighbours differ in `from_user`.
  const std::vector<Run>& runs() const { return runs_; }
  bool AnyFromUser() const;

  void Append(std::string_view text, bool from_user);
  void Append(const MarkedString& other) { AppendSlice(other, 0, other.size()); }
  // Bytes [begin, end) of `other`, which lie within it.
  void AppendSlice(const MarkedString& other, size_t begin, size_t end);
  MarkedString Slice(size_t begin, size_t end) const;

  std::vector<TextPiece> Pieces() const;

 private:
  std::string text_;
  std::vector<Run> runs_;
};

}  // namespace ferry::jinja
