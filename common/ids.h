#pragma once

// Typed ids: the compiler refuses a worker's index where a layer's is wanted.

#include <compare>
#include <cstdint>

namespace ferry {

template <typename Tag, typename Value>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Value value) : value_(value) {}
  constexpr Value value() const { return value_; }
  constexpr auto operator<=>(const Id&) const = default;

 private:
  Value value_{};
};

using WorkerId = Id<struct WorkerTag, int32_t>;           // position in the pipeline, 0 first
using Incarnation = Id<struct IncarnationTag, uint64_t>;  // random at each start of a process; 0: none
using StepId = Id<struct StepTag, uint64_t>;              // increases with every step of a cluster
using SlotId = Id<struct SlotTag, int32_t>;               // a sequence's place in the KV cache

}  // namespace ferry
