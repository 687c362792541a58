#include "coordinator/constraint/token_trie.h"

#include <algorithm>

namespace ferry::constraint {
namespace {

constexpr size_t kMaxTokenBytes = 1024;

}  // namespace

std::string ControlBytes(int32_t id) {
  std::string bytes(1, static_cast<char>(kControlByte));
  for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(id >> shift & 0xFF));
  return bytes;
}

TokenTrie::TokenTrie(const TokenSource& source) {
  const int32_t vocab_size = source.vocab_size();
  same_bytes_.assign(vocab_size, -1);
  offsets_.push_back(0);
  std::vector<int32_t> order;
  for (int32_t id = 0; id < vocab_size; ++id) {
    const bool control = source.IsControl(id);
    const std::string bytes = control ? ControlBytes(id) : std::string(source.TokenBytes(id));
    const bool mistakable = !control && bytes.find(static_cast<char>(kControlByte)) != std::string::npos;
    if (!bytes.empty() && bytes.size() <= kMaxTokenBytes && !mistakable) {
      bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
      order.push_back(id);
    }
    offsets_.push_back(bytes_.size());
  }
  const auto text = [&](int32_t id) {
    return std::string_view(reinterpret_cast<const char*>(bytes_.data()) + offsets_[id], offsets_[id + 1] - offsets_[id]);
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return text(a) < text(b); });
  std::vector<int32_t> path;  // nodes of the last token's bytes
  const auto close_to = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) nodes_[path.back()].end = static_cast<int32_t>(nodes_.size());
  };
  for (const int32_t id : order) {
    const auto bytes = Bytes(id);
    size_t shared = 0;
    while (shared < path.size() && shared < bytes.size() && nodes_[path[shared]].byte == bytes[shared]) ++shared;
    close_to(shared);
    for (size_t depth = shared; depth < bytes.size(); ++depth) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({.end = 0, .token = -1, .depth = static_cast<uint16_t>(depth), .byte = bytes[depth]});
    }
    max_depth_ = std::max(max_depth_, static_cast<int32_t>(bytes.size()));
    Node& node = nodes_[path.back()];
    same_bytes_[id] = node.token;
    node.token = id;
  }
  close_to(0);
  FindLongNodes();
}

void TokenTrie::FindLongNodes() {
  std::vector<int32_t> open;  // nodes on the path to the one that is looked at
  std::vector<bool> is_long(nodes_.size(), false);
  for (int32_t i = 0; i < static_cast<int32_t>(nodes_.size()); ++i) {
    open.resize(nodes_[i].depth);
    open.push_back(i);
    if (nodes_[i].depth < kShortBytes) continue;
    for (auto node = open.rbegin(); node != open.rend() && !is_long[*node]; ++node) is_long[*node] = true;
  }
  std::vector<size_t> ending;  // indices of long nodes whose descendants are not over
  const auto close_before = [&](int32_t i) {
    for (; !ending.empty() && nodes_[long_nodes_[ending.back()].node].end <= i; ending.pop_back()) {
      long_nodes_[ending.back()].end = static_cast<int32_t>(long_nodes_.size());
    }
  };
  for (int32_t i = 0; i < static_cast<int32_t>(nodes_.size()); ++i) {
    if (!is_long[i]) continue;
    close_before(i);
    ending.push_back(long_nodes_.size());
    long_nodes_.push_back({.node = i, .end = 0});
  }
  close_before(static_cast<int32_t>(nodes_.size()));
}

}  // namespace ferry::constraint
