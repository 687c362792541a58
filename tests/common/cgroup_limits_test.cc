#include "common/cgroup_limits.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace ferry {
namespace {

// A machine whose /proc and /sys say what the test wants.
class CgroupLimitsTest : public ::testing::Test {
 protected:
  ~CgroupLimitsTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  CgroupLimits limits() const { return CgroupLimits(root_); }
  const std::filesystem::path root_ = ::testing::TempDir() + "/cgroups-" + std::to_string(getpid());
};

TEST_F(CgroupLimitsTest, AMachineWithoutGroupsHasNoLimits) {
  EXPECT_EQ(limits().Cores(), std::nullopt);
  EXPECT_TRUE(limits().Memory().empty());
  EXPECT_TRUE(limits().Processes().empty());
}

TEST_F(CgroupLimitsTest, V2CountsEveryGroupAbove) {
  Write("proc/self/cgroup", "0::/a/b/c\n");
  Write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  Write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/a/b/c/cpu.max", "400000 100000\n");
  Write("sys/fs/cgroup/a/memory.max", "1000\n");
  Write("sys/fs/cgroup/a/memory.current", "400\n");
  Write("sys/fs/cgroup/a/b/c/memory.max", "max\n");
  Write("sys/fs/cgroup/a/b/c/memory.current", "300\n");
  Write("sys/fs/cgroup/a/b/pids.max", "25\n");
  Write("sys/fs/cgroup/a/b/pids.current", "5\n");
  EXPECT_EQ(limits().Cores(), 1.5);
  ASSERT_EQ(limits().Memory().size(), 1u);
  EXPECT_EQ(limits().Memory()[0].group, "/a");
  EXPECT_EQ(limits().Memory()[0].limit - limits().Memory()[0].used, 600);
  ASSERT_EQ(limits().Processes().size(), 1u);
  EXPECT_EQ(limits().Processes()[0].group, "/a/b");
  EXPECT_EQ(limits().Processes()[0].limit, 25);
}

TEST_F(CgroupLimitsTest, V1HasAFolderForEachController) {
  Write("proc/self/cgroup", "5:pids:/x\n4:memory:/x/y\n2:cpu,cpuacct:/x\n0::/\n");
  Write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "100000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n");
  Write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100\n");
  Write("sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "500\n");
  Write("sys/fs/cgroup/memory/x/y/memory.usage_in_bytes", "100\n");
  Write("sys/fs/cgroup/pids/x/pids.max", "40\n");
  Write("sys/fs/cgroup/pids/x/pids.current", "1\n");
  EXPECT_EQ(limits().Cores(), 1.0);
  EXPECT_EQ(limits().Memory().size(), 2u) << "the group above too";
  EXPECT_EQ(limits().Processes().size(), 1u);
}

TEST_F(CgroupLimitsTest, AContainersOwnGroupIsWhatItSees) {
  Write("proc/self/cgroup", "2:cpu:/docker/0123\n");  // the host's name of it
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limits().Cores(), 0.5);
}

}  // namespace
}  // namespace ferry
