#include "common/machine_id.h"

#include <sys/stat.h>

#include <fstream>

#include "absl/strings/str_format.h"

namespace ferry {

std::string MachineId() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat network_namespace = {};
  if (::stat("/proc/self/ns/net", &network_namespace) != 0) network_namespace.st_ino = 0;
  return absl::StrFormat("%s/%d", boot, network_namespace.st_ino);
}

}  // namespace ferry
