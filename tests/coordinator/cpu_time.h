#pragma once

// CPU time of the calling thread, for bounds on running time that hold on a busy machine too.

#include <ctime>

namespace ferry {

inline double ThreadCpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace ferry
