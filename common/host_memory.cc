#include "common/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>

#include "common/cgroup_limits.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

// The number after `key` in a file of "key value" lines ("MemAvailable:   123 kB").
std::optional<int64_t> FieldOf(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  std::string word;
  while (in >> word) {
    int64_t value;
    if (word == key && in >> value) return value;
    in.clear();
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

// Narrows `memory` to what a group leaves.
void Narrow(HostMemory& memory, const CgroupLimit& group) {
  // The files' pages on the LRU lists are dropped when memory runs short; shared memory is not among them.
  const fs::path stat = group.folder / "memory.stat";
  const int64_t droppable = FieldOf(stat, "inactive_file").value_or(0) + FieldOf(stat, "active_file").value_or(0);
  const int64_t left = std::max<int64_t>(0, group.limit - std::max<int64_t>(0, group.used - droppable));
  memory.total_bytes = std::min(memory.total_bytes, group.limit);
  if (left >= memory.available_bytes) return;
  memory.available_bytes = left;
  memory.limited_by = "the memory limit of cgroup " + group.group;
}

}  // namespace

HostMemory ReadHostMemory() {
  constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
  HostMemory memory{kUnknown, kUnknown, "no known limit"};
  if (const auto kib = FieldOf("/proc/meminfo", "MemTotal:")) memory.total_bytes = *kib * 1024;
  if (const auto kib = FieldOf("/proc/meminfo", "MemAvailable:")) {
    memory.available_bytes = *kib * 1024;
    memory.limited_by = "MemAvailable";
  }
  for (const CgroupLimit& group : CgroupLimits().Memory()) Narrow(memory, group);
  return memory;
}

int64_t ResidentBytes() {
  int64_t all_pages = 0, resident_pages = 0;
  std::ifstream("/proc/self/statm") >> all_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace ferry
