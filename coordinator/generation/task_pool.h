#pragma once

// A few threads for work that is too long for a gRPC callback. gRPC has few threads for callbacks, and a heartbeat must not wait
// for one.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "common/status.h"
#include "common/thread_limit.h"

namespace ferry {

class TaskPool {
 public:
  // At most `max_waiting` tasks wait for a thread, as far as TryPost goes. ResourceExhausted: the threads cannot be started.
  static absl::StatusOr<std::unique_ptr<TaskPool>> Create(int num_threads, size_t max_waiting = SIZE_MAX) {
    std::unique_ptr<TaskPool> pool(new TaskPool(max_waiting));
    for (int i = 0; i < num_threads; ++i) {
      ASSIGN_OR_RETURN(std::thread thread, StartThread([raw = pool.get()] { raw->Run(); }));
      pool->threads_.push_back(std::move(thread));
    }
    return pool;
  }
  // Runs all posted tasks, then ends.
  ~TaskPool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // Tasks begin in order.
  void Post(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }
  // False, and nothing is done, when max_waiting tasks wait already.
  bool TryPost(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      if (tasks_.size() >= max_waiting_) return false;
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return true;
  }

 private:
  explicit TaskPool(size_t max_waiting) : max_waiting_(max_waiting) {}
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ferry
