#pragma once

// Cuts the experts that the coordinator computes for a layer into requests that fit the expert link. Requests are cut between
// experts, so that the coordinator reads each expert once; only an expert larger than a whole request is cut by rows.

#include <cstdint>
#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"

namespace ferry {

// The assignments of all rows of a step, grouped by expert, on the host: entries [offsets[e], offsets[e+1]) are expert e's.
struct HostGroups {
  std::span<const int32_t> offsets;  // [num_experts + 1]
  std::span<const int32_t> rows;     // [entries] row of the step
  std::span<const int32_t> outs;     // [entries] row of the contributions
};

struct HostChunk {
  std::vector<ActivatedExpert> uses;  // ids increasing
  std::vector<int32_t> rows;          // rows of the step that go along, increasing
  std::vector<int32_t> entry_rows;    // index into `rows` of each entry
  std::vector<int32_t> outs;          // where each entry's contribution goes
};

// `experts`: those to compute on the host, increasing. max_rows and max_entries are at least 1.
std::vector<HostChunk> CutIntoChunks(std::span<const int32_t> experts, const HostGroups& groups, int64_t max_rows,
                                     int64_t max_entries);

}  // namespace ferry
