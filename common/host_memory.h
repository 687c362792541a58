#pragma once

// Memory of this process: what it holds, and how much it may still allocate (the machine's, or its control group's when that is
// less).

#include <cstdint>
#include <string>

namespace ferry {

struct HostMemory {
  int64_t available_bytes = 0;
  int64_t total_bytes = 0;
  std::string limited_by;  // "MemAvailable", "the memory limit of cgroup /ferry.slice"
};

// Reads /proc/meminfo and the limits of the process's cgroup and those above it. Page cache that can be dropped counts as
// available. On a machine that has none of these files the limit is infinite.
HostMemory ReadHostMemory();

// Memory of this process that is in RAM, with the pages it shares; 0 where /proc is missing.
int64_t ResidentBytes();

}  // namespace ferry
