#pragma once

// Finds the special tokens in a text: at each place the longest one that begins there, places taken from left to right.
//
// Time is linear in the text whatever the tokens are: an Aho-Corasick automaton over the reversed tokens reads the text
// once from its end and so knows, for every byte, the longest token that begins there.

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace ferry {

class SpecialMatcher {
 public:
  struct Pattern {
    std::string_view text;  // empty ones never match
    int32_t id;             // of equal texts the lowest id is found
    bool always;            // user-defined: found even when control tokens are not looked for
  };
  struct Match {
    size_t begin, bytes;
    int32_t id;
  };

  explicit SpecialMatcher(const std::vector<Pattern>& patterns);

  // Matches in `text`, in order, none overlapping. With `parse_special` all patterns, else those with `always`.
  std::vector<Match> FindAll(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    int32_t parent = 0;
    int32_t fallback = 0;      // the node of the longest proper suffix
    uint8_t byte = 0;          // on the edge from the parent
    int32_t id[2] = {-1, -1};  // longest pattern that ends here (in reversed text): [0] `always` only, [1] any
  };
  int32_t Child(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;                             // [0] is the root; parents come before children
  std::vector<int32_t> root_children_;                  // [256], -1: none
  absl::flat_hash_map<uint64_t, int32_t> children_;     // (node << 8 | byte) -> node, other than the root's
  absl::flat_hash_map<int32_t, size_t> pattern_bytes_;  // by id
  bool any_always_ = false, any_ = false;
};

}  // namespace ferry
