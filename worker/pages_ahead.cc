#include "worker/pages_ahead.h"

#include <algorithm>

#include "common/populate.h"

namespace ferry {
namespace {

constexpr int64_t kStepBytes = int64_t{16} << 20;

}  // namespace

PagesAhead::PagesAhead(std::span<std::byte> memory) : memory_(memory) {
  if (!memory.empty()) thread_ = std::thread([this] { Run(); });
}

PagesAhead::~PagesAhead() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void PagesAhead::Want(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes <= wanted_) return;
  wanted_ = std::min<int64_t>(bytes, std::ssize(memory_));
  changed_.notify_one();
}

void PagesAhead::Run() {
  int64_t have = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ends_ || have < wanted_; });
    if (ends_) return;
    const int64_t step = std::min(kStepBytes, wanted_ - have);
    lock.unlock();
    if (!PopulatePages(memory_.subspan(have, step))) return;
    have += step;
    lock.lock();
  }
}

}  // namespace ferry
