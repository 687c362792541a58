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

// What may wait for a thread, as far as TryPost goes.
struct TaskRoom {
  size_t tasks = SIZE_MAX;
  size_t bytes = SIZE_MAX;
};

class TaskPool {
 public:
  // ResourceExhausted: the threads cannot be started.
  static absl::StatusOr<std::unique_ptr<TaskPool>> Create(int num_threads, TaskRoom room = {}) {
    std::unique_ptr<TaskPool> pool(new TaskPool(room));
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
      Push(std::move(task), 0);
    }
    wake_.notify_one();
  }
  // `bytes` is what the task holds. False, and nothing is done, when there is no room for one more task, or for its bytes.
  bool TryPost(std::function<void()> task, size_t bytes = 0) {
    {
      const std::lock_guard lock(mutex_);
      if (tasks_.size() >= room_.tasks || bytes > room_.bytes - waiting_bytes_) return false;
      Push(std::move(task), bytes);
    }
    wake_.notify_one();
    return true;
  }

 private:
  struct Task {
    std::function<void()> run;
    size_t bytes = 0;
  };
  explicit TaskPool(TaskRoom room) : room_(room) {}
  void Push(std::function<void()> run, size_t bytes) {
    tasks_.push_back({std::move(run), bytes});
    waiting_bytes_ += bytes;
  }
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      {
        const Task task = std::move(tasks_.front());
        tasks_.pop_front();
        waiting_bytes_ -= task.bytes;
        lock.unlock();
        task.run();
      }
      lock.lock();
    }
  }

  const TaskRoom room_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  size_t waiting_bytes_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ferry
