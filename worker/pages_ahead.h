#pragma once

// Gets the pages of reserved memory before they are used, in order and on a thread of its own. Otherwise a page comes when it is
// locked, and a prompt waits for it: 2 us a page on a virtual machine that gets its memory as it uses it
// (docs/measurements/several_gpus.md).

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>

namespace ferry {

class PagesAhead {
 public:
  // `memory` is mapped, begins at a page and outlives this. No page comes before Want.
  explicit PagesAhead(std::span<std::byte> memory);
  ~PagesAhead();  // within the time of 16 MiB
  PagesAhead(const PagesAhead&) = delete;
  PagesAhead& operator=(const PagesAhead&) = delete;

  // The first `bytes` are soon to be used. Fewer than before change nothing, and more than all are all.
  void Want(int64_t bytes);

 private:
  void Run();

  const std::span<std::byte> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t wanted_ = 0;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace ferry
