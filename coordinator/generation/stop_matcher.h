#pragma once

// Finds stop strings in text that arrives in pieces, wherever the pieces are cut. It holds back only text that may be the
// beginning of a stop string.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"

namespace ferry {

inline constexpr size_t kMaxStopStrings = 256;
inline constexpr size_t kMaxStopBytes = 64 << 10;  // of all stop strings together

class StopMatcher {
 public:
  struct Result {
    std::string text;         // what may be shown now; ends before the stop string
    std::optional<int> stop;  // index of the stop string that was found
  };

  // InvalidArgument, naming the index: a stop string is empty or not UTF-8, or the limits above are exceeded.
  // None at all is allowed: everything passes.
  static absl::StatusOr<StopMatcher> Create(const std::vector<std::string>& stops);

  // Takes the next piece of text, valid UTF-8. The stop string that ends first is found, of several that end at the
  // same place the longest; the result does not depend on how the text is cut. Linear in the text. After a stop
  // everything is dropped: text is empty, stop the same.
  Result Push(std::string_view text);
  // The end of the text: returns the text held back.
  std::string Flush();

 private:
  struct Node {  // of an Aho-Corasick automaton over the stop strings
    int32_t parent = 0;
    int32_t fallback = 0;  // longest proper suffix that is a node
    int32_t depth = 0;     // bytes from the root
    uint8_t byte = 0;
    int32_t stop = -1;  // the longest stop string that ends here
    int32_t stop_bytes = 0;
  };
  StopMatcher() : nodes_(1) {}
  int32_t Child(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;                          // [0] is the root
  absl::flat_hash_map<uint64_t, int32_t> children_;  // (node << 8 | byte) -> node
  int32_t state_ = 0;
  std::string held_;  // its last nodes_[state_].depth bytes are the beginning of a stop string; between calls all are
  std::optional<int> found_;
};

}  // namespace ferry
