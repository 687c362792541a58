#include "common/cgroup_limits.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

namespace ferry {
namespace {

namespace fs = std::filesystem;

// The numbers that a file begins with, at most `count`; "max" and a missing file end them.
std::vector<int64_t> NumbersIn(const fs::path& file, size_t count) {
  std::ifstream in(file);
  std::vector<int64_t> numbers;
  for (int64_t number; numbers.size() < count && in >> number;) numbers.push_back(number);
  return numbers;
}

void AddLimit(const std::string& group, const fs::path& folder, const char* limit_file, const char* used_file,
              std::vector<CgroupLimit>* limits) {
  const std::vector<int64_t> limit = NumbersIn(folder / limit_file, 1), used = NumbersIn(folder / used_file, 1);
  if (limit.empty() || limit[0] < 0 || used.empty()) return;
  limits->push_back({.group = group, .folder = folder, .limit = limit[0], .used = used[0]});
}

}  // namespace

CgroupLimits::CgroupLimits(fs::path root) : root_(std::move(root)) {}

std::vector<CgroupLimits::Group> CgroupLimits::GroupsOf(const std::string& controller) const {
  const fs::path base = root_ / "sys/fs/cgroup";
  std::vector<Group> groups;
  const auto add = [&](const fs::path& mount, const fs::path& path, bool v2) {
    std::error_code error;
    for (fs::path group = path;; group = group.parent_path()) {
      const fs::path folder = mount / group.relative_path();
      if (fs::is_directory(folder, error)) groups.push_back({group.string(), folder, v2});
      if (!group.has_relative_path()) return;
    }
  };
  std::ifstream lines(root_ / "proc/self/cgroup");  // "4:memory:/docker/1", "2:cpu,cpuacct:/", "0::/user.slice"
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    std::error_code error;
    if (names.empty()) {
      // Alone it is mounted on the folder itself, beside v1 in one of its own.
      add(fs::is_directory(base / "unified", error) ? base / "unified" : base, path, /*v2=*/true);
      continue;
    }
    std::istringstream list(names);
    for (std::string name; std::getline(list, name, ',');) {
      if (name != controller) continue;
      add(fs::is_directory(base / name, error) ? base / name : base / names, path, /*v2=*/false);
    }
  }
  return groups;
}

std::vector<CgroupLimit> CgroupLimits::Memory() const {
  std::vector<CgroupLimit> limits;
  for (const Group& group : GroupsOf("memory")) {
    if (group.v2) {
      AddLimit(group.name, group.folder, "memory.max", "memory.current", &limits);
    } else {
      AddLimit(group.name, group.folder, "memory.limit_in_bytes", "memory.usage_in_bytes", &limits);
    }
  }
  return limits;
}

std::vector<CgroupLimit> CgroupLimits::Processes() const {
  std::vector<CgroupLimit> limits;
  for (const Group& group : GroupsOf("pids")) AddLimit(group.name, group.folder, "pids.max", "pids.current", &limits);
  return limits;
}

std::optional<double> CgroupLimits::Cores() const {
  std::optional<double> cores;
  for (const Group& group : GroupsOf("cpu")) {
    std::vector<int64_t> numbers;  // quota and period, both in microseconds; without a quota "max 100000", or -1
    if (group.v2) {
      numbers = NumbersIn(group.folder / "cpu.max", 2);
    } else {
      numbers = NumbersIn(group.folder / "cpu.cfs_quota_us", 1);
      const std::vector<int64_t> period = NumbersIn(group.folder / "cpu.cfs_period_us", 1);
      numbers.insert(numbers.end(), period.begin(), period.end());
    }
    if (numbers.size() != 2 || numbers[0] <= 0 || numbers[1] <= 0) continue;
    const double quota = static_cast<double>(numbers[0]) / static_cast<double>(numbers[1]);
    cores = cores ? std::min(*cores, quota) : quota;
  }
  return cores;
}

}  // namespace ferry
