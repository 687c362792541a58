#pragma once

// What a mailbox and a help board have in common: rows of a layer, contributions of its experts, and a head that says for which
// shape the memory was made.

#include <cstdint>

#include "common/status.h"

namespace ferry {

// Capacities; both sides compute the same layout from them.
struct ExpertRegionShape {
  int64_t n_embd = 0;
  int64_t max_rows = 0;     // input rows of a layer
  int64_t max_entries = 0;  // (row, expert) pairs = contribution rows
  int64_t max_experts = 0;  // of the model
  bool operator==(const ExpertRegionShape&) const = default;
};

// InvalidArgument naming `region` and the field that is out of range.
absl::Status CheckExpertRegionShape(const char* region, const ExpertRegionShape& shape);

// The first bytes of the memory, constant once it was made.
struct ExpertRegionHead {
  uint32_t magic = 0;
  uint32_t max_experts = 0;
  uint64_t n_embd = 0, max_rows = 0, max_entries = 0;

  ExpertRegionHead() = default;
  ExpertRegionHead(uint32_t magic, const ExpertRegionShape& shape)
      : magic(magic),
        max_experts(static_cast<uint32_t>(shape.max_experts)),
        n_embd(static_cast<uint64_t>(shape.n_embd)),
        max_rows(static_cast<uint64_t>(shape.max_rows)),
        max_entries(static_cast<uint64_t>(shape.max_entries)) {}
  bool operator==(const ExpertRegionHead&) const = default;
};

}  // namespace ferry
