#include "coordinator/constraint/pushdown.h"

#include <algorithm>
#include <map>
#include <set>

namespace ferry::constraint {
namespace {

constexpr Position kUnknown = -2;
// Readings of one text at once, and where-to-go-ons of one frame. A schema needs a few; only an ambiguous grammar has more.
constexpr size_t kMaxConfigurations = 4096;
constexpr size_t kMaxPositions = 200'000;
constexpr int64_t kMaxWork = 1'000'000;  // about a second

}  // namespace

size_t Pushdown::Hash::operator()(const std::vector<Configuration>& list) const {
  uint64_t hash = list.size();
  for (const Configuration& c : list) {
    const uint64_t value = uint64_t{static_cast<uint32_t>(c.state)} << 32 | static_cast<uint32_t>(c.frame);
    hash = (hash ^ value) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 31;
  }
  return hash;
}

Pushdown::Pushdown(const Automaton* automaton) : automaton_(*automaton) {
  Reset();
  // As if a caller outside had called the root.
  const StateId start = automaton_.Start(automaton_.root());
  std::vector<Configuration> kernel = {{start, Intern(Frame{{automaton_.end_state(), 0}})}};
  if (automaton_.AcceptsEmpty()) kernel.push_back({automaton_.end_state(), 0});
  start_ = Close(std::move(kernel), nullptr);
}

void Pushdown::Reset() {
  positions_.clear();
  for (auto& ids : position_ids_) ids.clear();
  frames_.clear();
  frame_ids_.clear();
  leaves_.clear();
  Intern(Frame());  // frame 0: below the root
}

FrameId Pushdown::Intern(Frame frame) {
  const auto [it, added] = frame_ids_.emplace(std::move(frame), static_cast<FrameId>(frames_.size()));
  if (added) frames_.push_back(it->first);
  return it->second;
}

Position Pushdown::Intern(std::vector<Configuration> configurations, bool can_end) {
  const auto [it, added] = position_ids_[can_end].emplace(std::move(configurations), static_cast<Position>(positions_.size()));
  if (added) {
    positions_.push_back(
        {.configurations = it->first, .can_end = can_end, .next = std::vector<Position>(automaton_.num_classes(), kUnknown)});
  }
  return it->second;
}

// Follows every end of a rule to its callers, then every call to its rule; what has bytes to read stays. Of `left_behind`
// only what it ends and calls.
Position Pushdown::Close(std::vector<Configuration> kernel, const Configuration* left_behind) {
  if (positions_.size() >= kMaxPositions || work_ >= kMaxWork) overflowed_ = true;
  if (overflowed_) return Intern({}, false);
  std::set<Configuration> seen;
  bool can_end = false;
  std::vector<Configuration> left = std::move(kernel);
  const auto follow_end = [&](const Configuration& c) {
    if (!automaton_.IsAccepting(c.state)) return;
    if (c.state == automaton_.end_state()) can_end = true;
    left.insert(left.end(), frames_[c.frame].begin(), frames_[c.frame].end());
  };
  if (left_behind != nullptr) follow_end(*left_behind);
  while (!left.empty()) {
    const Configuration c = left.back();
    left.pop_back();
    if (seen.size() >= kMaxConfigurations) overflowed_ = true;
    ++work_;
    if (overflowed_ || !seen.insert(c).second) continue;
    follow_end(c);
  }
  // No call ends at once, so the frames below are complete. Callers come first, so each rule's frame is made once.
  std::map<int32_t, std::pair<RuleId, Frame>> calls;  // by rank
  const auto follow_calls = [&](const Configuration& c) {
    for (const Automaton::Call& call : automaton_.Calls(c.state)) {
      auto& [rule, frame] = calls[automaton_.Rank(call.rule)];
      rule = call.rule;
      if (automaton_.IsLast(call.then)) {
        frame.insert(frame.end(), frames_[c.frame].begin(), frames_[c.frame].end());  // a tail call needs no frame
      } else {
        frame.push_back({call.then, c.frame});
      }
    }
  };
  if (left_behind != nullptr) follow_calls(*left_behind);
  for (const Configuration& c : seen) follow_calls(c);
  std::vector<Configuration> result;
  const auto keep = [&](const Configuration& c) {
    if (automaton_.HasBytes(c.state)) result.push_back(c);
  };
  for (const Configuration& c : seen) keep(c);
  while (!calls.empty() && work_ < kMaxWork) {
    auto [rule, frame] = std::move(calls.begin()->second);
    calls.erase(calls.begin());
    work_ += 1 + static_cast<int64_t>(frame.size());
    std::sort(frame.begin(), frame.end());
    frame.erase(std::unique(frame.begin(), frame.end()), frame.end());
    if (frame.size() > kMaxConfigurations) {
      overflowed_ = true;
      frame.resize(kMaxConfigurations);
    }
    const Configuration entered = {automaton_.Start(rule), Intern(std::move(frame))};
    keep(entered);
    follow_calls(entered);
  }
  if (!calls.empty()) overflowed_ = true;
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return Intern(std::move(result), can_end);
}

Position Pushdown::Advance(Position position, uint8_t byte) {
  const uint8_t byte_class = automaton_.ClassOf(byte);
  if (const Position known = positions_[position].next[byte_class]; known != kUnknown) return known;
  std::vector<Configuration> kernel;
  for (const Configuration& c : positions_[position].configurations) {
    const StateId to = automaton_.Next(c.state, byte_class);
    if (to != kDead) kernel.push_back({to, c.frame});
  }
  const Position next = kernel.empty() ? kNowhere : Close(std::move(kernel), nullptr);
  positions_[position].next[byte_class] = next;
  return next;
}

Position Pushdown::Leave(Configuration configuration) {
  const uint64_t key = uint64_t{static_cast<uint32_t>(configuration.state)} << 32 | static_cast<uint32_t>(configuration.frame);
  const auto it = leaves_.find(key);
  ++work_;
  if (it != leaves_.end()) return it->second;
  const Position position = Close({}, &configuration);
  leaves_.emplace(key, position);
  return position;
}

Position Pushdown::Forget(Position position) {
  const std::vector<Configuration> old = positions_[position].configurations;
  const bool can_end = positions_[position].can_end;
  const std::vector<Frame> old_frames = std::move(frames_);
  Reset();
  // A frame's parts are older than it, so ascending order copies parts first.
  std::vector<FrameId> new_ids(old_frames.size(), -1);
  std::vector<bool> needed(old_frames.size());
  for (const Configuration& c : old) needed[c.frame] = true;
  for (size_t frame = old_frames.size(); frame-- > 0;) {
    if (!needed[frame]) continue;
    for (const Configuration& c : old_frames[frame]) needed[c.frame] = true;
  }
  const auto renumbered = [&](std::vector<Configuration> list) {
    for (Configuration& c : list) c.frame = new_ids[c.frame];
    std::sort(list.begin(), list.end());
    return list;
  };
  for (size_t frame = 0; frame < old_frames.size(); ++frame) {
    if (needed[frame]) new_ids[frame] = Intern(renumbered(old_frames[frame]));
  }
  return Intern(renumbered(old), can_end);
}

}  // namespace ferry::constraint
