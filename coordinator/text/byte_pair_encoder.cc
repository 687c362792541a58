#include "coordinator/text/byte_pair_encoder.h"

#include <algorithm>
#include <functional>

namespace ferry {
namespace {

uint64_t PairKey(int32_t left, int32_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right); }

}  // namespace

BytePairEncoder::BytePairEncoder(const Vocabulary* vocabulary) : vocabulary_(*vocabulary) {
  const std::vector<Vocabulary::Merge>& merges = vocabulary_.merges();
  ranks_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    ranks_.emplace(PairKey(merges[rank].left, merges[rank].right), static_cast<uint32_t>(rank));
  }
}

absl::Status BytePairEncoder::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  std::vector<uint64_t>& queue = scratch->queue;  // a heap of rank << 32 | place of the left symbol, least on top
  symbols.resize(piece.size());
  queue.clear();
  const int32_t size = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < size; ++i) {
    const uint8_t byte = static_cast<uint8_t>(piece[i]);
    std::optional<int32_t> id = vocabulary_.ByteToken(byte);
    if (!id) id = vocabulary_.unknown();
    if (!id) {
      return InvalidArgument("byte 0x%02x has no token in this vocabulary, nor has it an unknown token", byte);
    }
    symbols[i] = {*id, i - 1, i + 1 < size ? i + 1 : -1};
  }

  const auto add_pair = [&](int32_t left) {
    const auto it = ranks_.find(PairKey(symbols[left].id, symbols[symbols[left].next].id));
    if (it == ranks_.end()) return false;
    queue.push_back(static_cast<uint64_t>(it->second) << 32 | static_cast<uint32_t>(left));
    return true;
  };
  for (int32_t i = 0; i + 1 < size; ++i) add_pair(i);
  std::make_heap(queue.begin(), queue.end(), std::greater<>());

  while (!queue.empty()) {
    ++scratch->steps;
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t entry = queue.back();
    queue.pop_back();
    const Vocabulary::Merge& merge = vocabulary_.merges()[entry >> 32];
    const int32_t left = static_cast<int32_t>(entry & 0xFFFFFFFF);
    const int32_t right = symbols[left].next;
    // Symbols have changed since the entry was made: the pair is gone.
    if (symbols[left].id != merge.left || right < 0 || symbols[right].id != merge.right) continue;
    symbols[left].id = merge.result;
    symbols[left].next = symbols[right].next;
    symbols[right].id = -1;
    if (symbols[left].next >= 0) {
      symbols[symbols[left].next].previous = left;
      if (add_pair(left)) std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
    if (symbols[left].previous >= 0 && add_pair(symbols[left].previous)) {
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
  }
  for (int32_t i = 0; i >= 0 && i < size; i = symbols[i].next) ids->push_back(symbols[i].id);
  return absl::OkStatus();
}

}  // namespace ferry
