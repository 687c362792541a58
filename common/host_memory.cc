#include "common/host_memory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>

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

// The number a file holds alone; nullopt for "max" or no file.
std::optional<int64_t> NumberIn(const fs::path& file) {
  std::ifstream in(file);
  int64_t value;
  if (in >> value) return value;
  return std::nullopt;
}

// Narrows `memory` to the `limit` of a group less the `used` bytes that it has taken.
void Narrow(HostMemory& memory, const fs::path& group, int64_t limit, int64_t used, const std::string& name) {
  // The files' pages on the LRU lists are dropped when memory runs short; shared memory is not among them.
  const int64_t droppable =
      FieldOf(group / "memory.stat", "inactive_file").value_or(0) + FieldOf(group / "memory.stat", "active_file").value_or(0);
  const int64_t left = std::max<int64_t>(0, limit - std::max<int64_t>(0, used - droppable));
  memory.total_bytes = std::min(memory.total_bytes, limit);
  if (left >= memory.available_bytes) return;
  memory.available_bytes = left;
  memory.limited_by = "the memory limit of cgroup " + name;
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
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {  // v2: every group above limits too
      for (fs::path group = path;; group = group.parent_path()) {
        const fs::path folder = fs::path("/sys/fs/cgroup") / group.relative_path();
        const auto limit = NumberIn(folder / "memory.max"), used = NumberIn(folder / "memory.current");
        if (limit && used) Narrow(memory, folder, *limit, *used, group.string());
        if (!group.has_relative_path()) break;
      }
    } else if (controllers == "memory") {
      const fs::path folder = fs::path("/sys/fs/cgroup/memory") / fs::path(path).relative_path();
      const auto limit = NumberIn(folder / "memory.limit_in_bytes"), used = NumberIn(folder / "memory.usage_in_bytes");
      if (limit && used) Narrow(memory, folder, *limit, *used, path);
    }
  }
  return memory;
}

}  // namespace ferry
