#pragma once

// The tokens of a vocabulary as a tree of their bytes, so that one walk tests every token against an automaton.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::constraint {

// What a constraint needs to know of a vocabulary.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual int32_t vocab_size() const = 0;
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // A token that is no text: a constraint allows it only where it names the token.
  virtual bool IsControl(int32_t id) const = 0;
};

// The bytes of a control token among those of texts: a byte that UTF-8 does not have, and the id.
inline constexpr uint8_t kControlByte = 0xFF;
std::string ControlBytes(int32_t id);

// Immutable.
class TokenTrie {
 public:
  // In depth-first order: a node's descendants lie between it and `end`.
  struct Node {
    int32_t end;     // the first node that is no descendant
    int32_t token;   // a token of exactly these bytes, -1: none; others of the same bytes follow by SameBytes
    uint16_t depth;  // bytes before this one
    uint8_t byte;
  };

  // The nodes that lie on a path to a token of more than kShortBytes bytes, in depth-first order.
  struct LongNode {
    int32_t node;
    int32_t end;  // the first of these that is no descendant
  };
  static constexpr int32_t kShortBytes = 16;

  // A control token has its ControlBytes. Tokens without bytes, with more than 1024, and others with kControlByte are left out.
  explicit TokenTrie(const TokenSource& source);

  int32_t vocab_size() const { return static_cast<int32_t>(same_bytes_.size()); }
  std::span<const Node> nodes() const { return nodes_; }
  std::span<const LongNode> long_nodes() const { return long_nodes_; }
  int32_t SameBytes(int32_t token) const { return same_bytes_[token]; }  // the next one, or -1
  std::span<const uint8_t> Bytes(int32_t token) const {
    return {bytes_.data() + offsets_[token], bytes_.data() + offsets_[token + 1]};  // empty: the token is left out
  }
  int32_t max_depth() const { return max_depth_; }

 private:
  void FindLongNodes();

  std::vector<Node> nodes_;
  std::vector<LongNode> long_nodes_;
  std::vector<int32_t> same_bytes_;  // [vocab_size]
  std::vector<uint8_t> bytes_;
  std::vector<size_t> offsets_;  // [vocab_size + 1]
  int32_t max_depth_ = 0;
};

}  // namespace ferry::constraint
