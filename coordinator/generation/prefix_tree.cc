#include "coordinator/generation/prefix_tree.h"

#include <algorithm>
#include <functional>
#include <string_view>

namespace ferry {
namespace {

// Children that FindPartial looks at: a tenth of a millisecond, for less than a block of tokens.
constexpr int64_t kMostCompared = 1024;

uint64_t HashOf(std::span<const int32_t> tokens) {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
}

void FillWithAll(int64_t count, std::vector<int32_t>* blocks) {
  blocks->resize(count);
  for (int64_t i = 0; i < count; ++i) (*blocks)[i] = static_cast<int32_t>(count - 1 - i);
}

}  // namespace

PrefixTree::PrefixTree(int64_t num_blocks, int64_t num_host_blocks) : num_blocks_(num_blocks), num_host_blocks_(num_host_blocks) {
  Clear();
}

void PrefixTree::Clear() {
  kept_.clear();
  kept_host_.clear();
  orphans_.clear();
  moves_.clear();
  // A path can be as long as a context has blocks: children are taken out first, or destructors would nest as deep.
  std::vector<std::unique_ptr<Node>> nodes;
  for (auto& [domain, root] : roots_) nodes.push_back(std::move(root));
  while (!nodes.empty()) {
    const std::unique_ptr<Node> node = std::move(nodes.back());
    nodes.pop_back();
    for (auto& [hash, child] : node->children_) nodes.push_back(std::move(child));
  }
  roots_.clear();
  FillWithAll(num_blocks_, &free_);
  FillWithAll(num_host_blocks_, &free_host_);
}

PrefixTree::Node* PrefixTree::HoldRoot(const std::string& domain) {
  std::unique_ptr<Node>& root = roots_[domain];
  if (root == nullptr) {
    root = std::make_unique<Node>();
    root->domain_ = domain;
  }
  ++root->holders_;
  return root.get();
}

PrefixTree::Node* PrefixTree::FindRoot(const std::string& domain) const {
  const auto found = roots_.find(domain);
  return found == roots_.end() ? nullptr : found->second.get();
}

PrefixTree::Node* PrefixTree::Find(const Node& parent, std::span<const int32_t> tokens) const {
  const auto [begin, end] = parent.children_.equal_range(HashOf(tokens));
  for (auto child = begin; child != end; ++child) {
    if (std::ranges::equal(child->second->tokens_, tokens)) return child->second.get();
  }
  return nullptr;
}

std::pair<PrefixTree::Node*, int64_t> PrefixTree::FindPartial(const Node& parent, std::span<const int32_t> tokens) const {
  std::pair<Node*, int64_t> best = {nullptr, 0};
  int64_t seen = 0;
  for (const auto& [hash, child] : parent.children_) {
    if (++seen > kMostCompared) break;
    const auto differ = std::ranges::mismatch(child->tokens_, tokens);
    const int64_t common = differ.in2 - tokens.begin();
    if (common > best.second) best = {child.get(), common};
  }
  return best;
}

PrefixTree::Node* PrefixTree::Add(Node* parent, std::span<const int32_t> tokens, int32_t block) {
  auto node = std::make_unique<Node>();
  node->parent_ = parent;
  node->number_ = ++last_number_;
  node->depth_ = parent->depth_ + 1;
  node->tokens_.assign(tokens.begin(), tokens.end());
  node->block_ = block;
  node->holders_ = 1;
  return parent->children_.emplace(HashOf(tokens), std::move(node))->second.get();
}

void PrefixTree::Hold(Node* node) {
  if (node->holders_++ > 0 || node->parent_ == nullptr) return;
  (node->block_ != kNoBlock ? kept_ : kept_host_).erase(node->order());
}

void PrefixTree::Release(Node* node, uint64_t now) {
  if (--node->holders_ > 0) return;
  if (node->parent_ == nullptr) {
    EraseRootIfUnused(node);
    return;
  }
  node->last_used_ = now;
  (node->block_ != kNoBlock ? kept_ : kept_host_).emplace(node->order(), node);
}

void PrefixTree::BringBack(Node* node, int32_t block) {
  moves_.push_back({.kind = CacheMove::Kind::kLoadBlock, .block = block, .host = node->host_block_});
  FreeHostBlock(std::exchange(node->host_block_, kNoBlock));
  node->block_ = block;
}

void PrefixTree::Replace(Node* node, int32_t block) {
  Hold(node);
  if (node->block_ != kNoBlock) FreeBlock(node->block_);
  if (node->host_block_ != kNoBlock) FreeHostBlock(std::exchange(node->host_block_, kNoBlock));
  node->block_ = block;
  ReleaseUnused(node);
}

void PrefixTree::Detach(Node* node, uint64_t number) {
  std::erase(node->attached_, number);
  if (node->parent_ == nullptr) EraseRootIfUnused(node);
}

void PrefixTree::EraseRootIfUnused(Node* root) {
  if (root->holders_ == 0 && root->children_.empty() && root->attached_.empty()) roots_.erase(roots_.find(root->domain_));
}

void PrefixTree::Erase(Node* node) {
  orphans_.insert(orphans_.end(), node->attached_.begin(), node->attached_.end());
  Node* const parent = node->parent_;
  const auto [begin, end] = parent->children_.equal_range(HashOf(node->tokens_));
  parent->children_.erase(std::find_if(begin, end, [&](const auto& child) { return child.second.get() == node; }));
  if (parent->parent_ == nullptr) EraseRootIfUnused(parent);
}

int32_t PrefixTree::TakeBlock() {
  if (!free_.empty()) {
    const int32_t block = free_.back();
    free_.pop_back();
    return block;
  }
  Node* const node = kept_.begin()->second;
  kept_.erase(kept_.begin());
  const int32_t block = node->block_, host_block = TakeHostBlock();
  if (host_block == kNoBlock) {  // its children, all in host memory, would have made room: it has none
    Erase(node);
    return block;
  }
  node->block_ = kNoBlock;
  node->host_block_ = host_block;
  kept_host_.emplace(node->order(), node);
  moves_.push_back({.kind = CacheMove::Kind::kSaveBlock, .block = block, .host = host_block});
  return block;
}

int32_t PrefixTree::TakeHostBlock() {
  if (free_host_.empty()) {
    if (kept_host_.empty()) return kNoBlock;
    Node* const node = kept_host_.begin()->second;
    kept_host_.erase(kept_host_.begin());
    const int32_t host_block = node->host_block_;
    Erase(node);
    return host_block;
  }
  const int32_t host_block = free_host_.back();
  free_host_.pop_back();
  return host_block;
}

}  // namespace ferry
