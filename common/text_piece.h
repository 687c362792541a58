#pragma once

// A part of a prompt, and who wrote it. A prompt is a list of pieces whose texts are read one after the other.

#include <string>

namespace ferry {

struct TextPiece {
  std::string text;
  // Text of a user: the special tokens written in it are text. In all other pieces they become their ids.
  bool from_user = false;

  bool operator==(const TextPiece&) const = default;
};

}  // namespace ferry
