#pragma once

// What the control groups of this process allow: memory, processor time, processes. The one reader of them, for cgroup v1, v2 and
// both at once. The limits of every group above the process's own count too; in a container some of those cannot be seen, and
// what can be seen counts.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace ferry {

struct CgroupLimit {
  std::string group;             // "/ferry.slice", for people
  std::filesystem::path folder;  // of its files
  int64_t limit = 0;
  int64_t used = 0;
};

class CgroupLimits {
 public:
  // `root`: "/", or in a test a folder that holds proc/self/cgroup and sys/fs/cgroup.
  explicit CgroupLimits(std::filesystem::path root = "/");

  // Bytes of memory; one entry for each group that has a limit. `used` counts page cache.
  std::vector<CgroupLimit> Memory() const;
  // Processes and threads, likewise.
  std::vector<CgroupLimit> Processes() const;
  // Cores' worth of time, the least that any of the groups allows; nullopt: no group has a quota.
  std::optional<double> Cores() const;

 private:
  struct Group {
    std::string name;
    std::filesystem::path folder;
    bool v2 = false;
  };
  // The groups in which `controller` may limit the process, its own first.
  std::vector<Group> GroupsOf(const std::string& controller) const;

  const std::filesystem::path root_;
};

}  // namespace ferry
