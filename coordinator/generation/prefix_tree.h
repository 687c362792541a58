#pragma once

// What the blocks of the KV cache hold: the beginnings of sequences as trees of blocks, and the blocks of nobody.
//
// A node is one block of a sequence: its tokens, and its parent the block before it. So a path from a root is a beginning of some
// sequence, and sequences with the same beginning share its nodes. A root belongs to a domain: nodes of different domains are
// never the same.
//
// Running sequences hold nodes. What nobody holds is kept on the device until its block is needed; then it goes to host memory,
// if there is room or something older to drop. The least recently used node goes first, and a path's end before its beginning. So
// a node on the device has its parent there, and no node outlives its parent.
//
// Moves are to be executed in their order before whatever uses the blocks next. A pure data structure; one thread.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/cache_move.h"

namespace ferry {

class PrefixTree {
 public:
  static constexpr int32_t kNoBlock = -1;

  class Node {
   public:
    Node* parent() const { return parent_; }  // null: a root
    int64_t depth() const { return depth_; }  // a root has 0
    std::span<const int32_t> tokens() const { return tokens_; }
    int32_t block() const { return block_; }            // on the device; kNoBlock: it is in host memory
    int32_t host_block() const { return host_block_; }  // kNoBlock: it is on the device
    bool held() const { return holders_ > 0; }
    bool shared() const { return holders_ > 1; }

   private:
    friend class PrefixTree;
    using Order = std::tuple<uint64_t, int64_t, uint64_t>;  // last used, minus the depth, number
    Order order() const { return {last_used_, -depth_, number_}; }

    Node* parent_ = nullptr;
    std::string domain_;  // of a root
    uint64_t number_ = 0;
    int64_t depth_ = 0;
    std::vector<int32_t> tokens_;
    int32_t block_ = kNoBlock, host_block_ = kNoBlock;
    int64_t holders_ = 0;
    uint64_t last_used_ = 0;  // when the last holder let it go
    std::vector<uint64_t> attached_;
    std::unordered_multimap<uint64_t, std::unique_ptr<Node>> children_;  // by the hash of their tokens
  };

  PrefixTree(int64_t num_blocks, int64_t num_host_blocks);
  ~PrefixTree() { Clear(); }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // Forgets everything, held nodes and moves too.
  void Clear();

  Node* HoldRoot(const std::string& domain);
  Node* FindRoot(const std::string& domain) const;  // null: nothing of it is kept
  // The child with exactly these tokens, or null.
  Node* Find(const Node& parent, std::span<const int32_t> tokens) const;
  // The child that begins most like `tokens`, and how many of them it shares; null and 0 when none does. Of very many children it
  // looks at some.
  std::pair<Node*, int64_t> FindPartial(const Node& parent, std::span<const int32_t> tokens) const;
  // Adds a child of a held node, held once. Its block is the caller's until now. Find says that it is not there.
  Node* Add(Node* parent, std::span<const int32_t> tokens, int32_t block);

  void Hold(Node* node);
  // `now`: the node was last used now; all nodes of a path are let go of together.
  void Release(Node* node, uint64_t now);
  // Lets go of a node that is as old as before.
  void ReleaseUnused(Node* node) { Release(node, node->last_used_); }

  // Gives a held node that is in host memory a block of the caller's, and loads it.
  void BringBack(Node* node, int32_t block);
  // Gives a node that nobody holds another block, which holds its tokens already. Its own is free then.
  void Replace(Node* node, int32_t block);

  // What else ends with a node, by numbers of the caller's choice: a root stays while it has some.
  void Attach(Node* node, uint64_t number) { node->attached_.push_back(number); }
  void Detach(Node* node, uint64_t number);
  // Those of nodes that have gone, for the caller to end. They are no longer attached.
  std::vector<uint64_t> TakeOrphans() { return std::exchange(orphans_, {}); }

  // A block of nobody, or that of the node that goes first. There must be one: num_free() or num_kept() is above 0.
  int32_t TakeBlock();
  void FreeBlock(int32_t block) { free_.push_back(block); }
  // A host block of nobody, or that of the node that goes first; kNoBlock when there is none.
  int32_t TakeHostBlock();
  void FreeHostBlock(int32_t block) { free_host_.push_back(block); }

  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }  // device blocks of no node
  int64_t num_kept() const { return static_cast<int64_t>(kept_.size()); }  // device blocks of nodes that nobody holds
  int64_t num_free_host() const { return static_cast<int64_t>(free_host_.size()); }

  // Since the last call, in their order. The caller may add its own.
  std::vector<CacheMove>& moves() { return moves_; }
  const std::vector<CacheMove>& moves() const { return moves_; }

 private:
  void Erase(Node* node);  // a leaf that nobody holds; its block is the caller's
  void EraseRootIfUnused(Node* root);

  const int64_t num_blocks_, num_host_blocks_;
  std::map<std::string, std::unique_ptr<Node>> roots_;
  std::vector<int32_t> free_, free_host_;          // taken from the back
  std::map<Node::Order, Node*> kept_, kept_host_;  // nodes that nobody holds, by where they are; the first goes first
  std::vector<uint64_t> orphans_;
  std::vector<CacheMove> moves_;
  uint64_t last_number_ = 0;
};

}  // namespace ferry
