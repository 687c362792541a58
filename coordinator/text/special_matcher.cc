#include "coordinator/text/special_matcher.h"

#include <algorithm>

namespace ferry {

SpecialMatcher::SpecialMatcher(const std::vector<Pattern>& patterns) : nodes_(1), root_children_(256, -1) {
  for (const Pattern& pattern : patterns) {
    if (pattern.text.empty()) continue;
    int32_t node = 0;
    for (size_t i = pattern.text.size(); i-- > 0;) {
      const uint8_t byte = static_cast<uint8_t>(pattern.text[i]);
      int32_t child = Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        nodes_.push_back({.parent = node, .byte = byte});
        (node == 0 ? root_children_[byte] : children_[static_cast<uint64_t>(node) << 8 | byte]) = child;
      }
      node = child;
    }
    const auto keep_lowest = [&](int32_t& id) { id = id < 0 ? pattern.id : std::min(id, pattern.id); };
    keep_lowest(nodes_[node].id[1]);
    if (pattern.always) keep_lowest(nodes_[node].id[0]);
    pattern_bytes_[pattern.id] = pattern.text.size();
    any_ = true;
    any_always_ |= pattern.always;
  }
  // Breadth first, so that a fallback, which is shorter, is finished before the nodes that need it.
  std::vector<std::vector<int32_t>> by_depth;
  std::vector<int32_t> depth(nodes_.size(), 0);
  for (size_t i = 1; i < nodes_.size(); ++i) {
    depth[i] = depth[nodes_[i].parent] + 1;
    if (by_depth.size() < static_cast<size_t>(depth[i])) by_depth.resize(depth[i]);
    by_depth[depth[i] - 1].push_back(static_cast<int32_t>(i));
  }
  for (const std::vector<int32_t>& level : by_depth) {
    for (const int32_t i : level) {
      Node& node = nodes_[i];
      if (node.parent != 0) {
        int32_t suffix = nodes_[node.parent].fallback;
        int32_t next;
        while ((next = Child(suffix, node.byte)) < 0 && suffix != 0) suffix = nodes_[suffix].fallback;
        node.fallback = std::max(next, 0);
      }
      for (int set = 0; set < 2; ++set) {
        if (node.id[set] < 0) node.id[set] = nodes_[node.fallback].id[set];
      }
    }
  }
}

int32_t SpecialMatcher::Child(int32_t node, uint8_t byte) const {
  if (node == 0) return root_children_[byte];
  const auto it = children_.find(static_cast<uint64_t>(node) << 8 | byte);
  return it == children_.end() ? -1 : it->second;
}

std::vector<SpecialMatcher::Match> SpecialMatcher::FindAll(std::string_view text, bool parse_special) const {
  std::vector<Match> matches;
  if (!(parse_special ? any_ : any_always_)) return matches;
  // Every begin of a pattern, from the last to the first, with the longest pattern there.
  int32_t node = 0;
  for (size_t i = text.size(); i-- > 0;) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    int32_t next;
    while ((next = Child(node, byte)) < 0 && node != 0) node = nodes_[node].fallback;
    node = std::max(next, 0);
    if (const int32_t id = nodes_[node].id[parse_special]; id >= 0) matches.push_back({i, pattern_bytes_.at(id), id});
  }
  std::reverse(matches.begin(), matches.end());
  size_t kept = 0, free_from = 0;
  for (const Match& match : matches) {
    if (match.begin < free_from) continue;
    free_from = match.begin + match.bytes;
    matches[kept++] = match;
  }
  matches.resize(kept);
  return matches;
}

}  // namespace ferry
