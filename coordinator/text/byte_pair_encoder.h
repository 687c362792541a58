#pragma once

// Byte-pair encoding of one piece of text: begins with the tokens of its bytes and applies, again and again, the merge
// of lowest rank, the leftmost first, until none applies.

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"
#include "coordinator/text/vocabulary.h"

namespace ferry {

class BytePairEncoder {
 public:
  // Buffers that one thread keeps between pieces.
  struct Scratch {
    struct Symbol {
      int32_t id;              // -1: merged into the one before
      int32_t previous, next;  // -1: none
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue;
    int64_t steps = 0;  // queue entries handled so far, for tests of the running time
  };

  explicit BytePairEncoder(const Vocabulary* vocabulary);  // which must outlive this

  // Appends the ids of `piece`, fewer than 2^31 bytes. O(n log n) in its length. Any thread, each with its own scratch.
  // InvalidArgument: a byte has no token and the vocabulary no unknown token; names the byte and its place.
  absl::Status Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

 private:
  const Vocabulary& vocabulary_;
  absl::flat_hash_map<uint64_t, uint32_t> ranks_;  // (left << 32 | right) -> rank; of equal merges the first
};

}  // namespace ferry
