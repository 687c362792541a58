#pragma once

// How often each expert was needed and not in a worker's slots. Thread-safe, and nobody waits.

#include <atomic>
#include <cstdint>
#include <vector>

namespace ferry {

class ExpertMisses {
 public:
  ExpertMisses(int64_t num_layers, int64_t num_experts)
      : num_experts_(num_experts), counts_(static_cast<size_t>(num_layers * num_experts)) {}

  // Of an expert of the model.
  void Add(int64_t layer, int64_t expert) { counts_[IndexOf(layer, expert)].fetch_add(1, std::memory_order_relaxed); }
  uint64_t Of(int64_t layer, int64_t expert) const { return counts_[IndexOf(layer, expert)].load(std::memory_order_relaxed); }
  int64_t num_experts() const { return num_experts_; }

 private:
  size_t IndexOf(int64_t layer, int64_t expert) const { return static_cast<size_t>(layer * num_experts_ + expert); }

  const int64_t num_experts_;
  std::vector<std::atomic<uint64_t>> counts_;
};

}  // namespace ferry
