#pragma once

// Text that arrives in pieces and is searched for tags: what may be the beginning of a tag waits for what follows.

#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ferry {

class HeldText {
 public:
  struct Found {
    std::string before;  // the text in front of the tag, or all that cannot belong to one
    int tag = -1;        // which of the tags; -1: none yet
  };

  void Push(std::string_view text) { text_ += text; }

  // The first place where one of `tags` is written; of tags that begin at one place the longest. Takes the tag and what
  // is before it out of the text. Without one, takes what cannot be part of a tag; with `at_end`, everything.
  Found Take(std::span<const std::string_view> tags, bool at_end);

  // The whole text, taken.
  std::string TakeAll();
  // Drops white space at the beginning. Whether something else follows.
  bool SkipSpace();
  void Drop(size_t bytes) { text_.erase(0, bytes); }
  void PutBack(std::string_view text) { text_.insert(0, text); }

  std::string_view text() const { return text_; }
  bool empty() const { return text_.empty(); }

 private:
  std::string text_;
};

// The bytes at the end of `text` with which `tag` may begin.
size_t TagBeginning(std::string_view text, std::string_view tag);

}  // namespace ferry
