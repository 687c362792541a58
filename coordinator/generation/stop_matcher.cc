#include "coordinator/generation/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/utf8.h"

namespace ferry {

absl::StatusOr<StopMatcher> StopMatcher::Create(const std::vector<std::string>& stops) {
  if (stops.size() > kMaxStopStrings) {
    return InvalidArgument("stop has %d strings, at most %d are allowed", stops.size(), kMaxStopStrings);
  }
  StopMatcher matcher;
  size_t bytes = 0;
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) return InvalidArgument("stop[%d] is empty", i);
    if (!IsValidUtf8(stops[i])) return InvalidArgument("stop[%d] is not UTF-8", i);
    bytes += stops[i].size();
    if (bytes > kMaxStopBytes) {
      return InvalidArgument("stop strings have more than %d bytes together", kMaxStopBytes);
    }
    int32_t node = 0;
    for (const char c : stops[i]) {
      const uint8_t byte = static_cast<uint8_t>(c);
      int32_t child = matcher.Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(matcher.nodes_.size());
        matcher.nodes_.push_back({.parent = node, .depth = matcher.nodes_[node].depth + 1, .byte = byte});
        matcher.children_[static_cast<uint64_t>(node) << 8 | byte] = child;
      }
      node = child;
    }
    if (matcher.nodes_[node].stop < 0) {
      matcher.nodes_[node].stop = static_cast<int32_t>(i);
      matcher.nodes_[node].stop_bytes = matcher.nodes_[node].depth;
    }
  }
  // Breadth first: a fallback is shorter, so it is finished before the nodes that need it.
  std::vector<int32_t> order(matcher.nodes_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return matcher.nodes_[a].depth < matcher.nodes_[b].depth; });
  for (const int32_t i : order) {
    Node& node = matcher.nodes_[i];
    if (node.depth > 1) {
      int32_t suffix = matcher.nodes_[node.parent].fallback;
      int32_t next;
      while ((next = matcher.Child(suffix, node.byte)) < 0 && suffix != 0) suffix = matcher.nodes_[suffix].fallback;
      node.fallback = std::max(next, 0);
    }
    if (node.stop < 0) {
      node.stop = matcher.nodes_[node.fallback].stop;
      node.stop_bytes = matcher.nodes_[node.fallback].stop_bytes;
    }
  }
  return matcher;
}

int32_t StopMatcher::Child(int32_t node, uint8_t byte) const {
  const auto it = children_.find(static_cast<uint64_t>(node) << 8 | byte);
  return it == children_.end() ? -1 : it->second;
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  if (found_) return {.text = "", .stop = found_};
  for (const char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    held_.push_back(c);
    int32_t next;
    while ((next = Child(state_, byte)) < 0 && state_ != 0) state_ = nodes_[state_].fallback;
    state_ = std::max(next, 0);
    if (nodes_[state_].stop >= 0) {
      found_ = nodes_[state_].stop;
      held_.resize(held_.size() - nodes_[state_].stop_bytes);
      return {.text = std::exchange(held_, ""), .stop = found_};
    }
  }
  const size_t shown = held_.size() - nodes_[state_].depth;
  Result result{.text = held_.substr(0, shown), .stop = std::nullopt};
  held_.erase(0, shown);
  return result;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, "");
}

}  // namespace ferry
