#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>

namespace ferry {

// Gets the pages of `memory`, which begins at a page, as writing to each would. False: the system has no memory left, or knows no
// such call (before Linux 5.14). Then a page comes when it is written.
inline bool PopulatePages(std::span<std::byte> memory) {
#ifdef MADV_POPULATE_WRITE
  constexpr int kPopulate = MADV_POPULATE_WRITE;
#else
  constexpr int kPopulate = 23;
#endif
  return ::madvise(memory.data(), memory.size(), kPopulate) == 0;
}

}  // namespace ferry
