#include "coordinator/generation/task_pool.h"

#include <gtest/gtest.h>

#include <future>
#include <vector>

namespace ferry {
namespace {

// A pool whose only thread is busy until Release().
class BusyPool {
 public:
  explicit BusyPool(TaskRoom room) : pool_(TaskPool::Create(1, room).value()) {
    pool_->Post([this] {
      busy_.set_value();
      free_.get_future().wait();
    });
    busy_.get_future().wait();
  }
  bool Try(size_t bytes) {
    return pool_->TryPost([this] { ++run_; }, bytes);
  }
  // The number of tasks that Try took.
  int Release() {
    free_.set_value();
    pool_.reset();
    return run_;
  }

 private:
  std::promise<void> busy_, free_;
  int run_ = 0;
  std::unique_ptr<TaskPool> pool_;
};

TEST(TaskPool, RefusesATaskWhenTooManyWait) {
  BusyPool pool({.tasks = 2});
  EXPECT_TRUE(pool.Try(0));
  EXPECT_TRUE(pool.Try(0));
  EXPECT_FALSE(pool.Try(0));
  EXPECT_EQ(pool.Release(), 2);
}

TEST(TaskPool, RefusesATaskWhenThoseThatWaitHoldTooManyBytes) {
  BusyPool pool({.bytes = 100});
  EXPECT_TRUE(pool.Try(60));
  EXPECT_FALSE(pool.Try(41));
  EXPECT_TRUE(pool.Try(40));
  EXPECT_FALSE(pool.Try(1));
  EXPECT_EQ(pool.Release(), 2);
}

TEST(TaskPool, ATaskThatRunsMakesRoom) {
  const auto pool = TaskPool::Create(1, {.bytes = 10}).value();
  std::promise<void> first;
  ASSERT_TRUE(pool->TryPost([&] { first.set_value(); }, 10));
  first.get_future().wait();
  EXPECT_TRUE(pool->TryPost([] {}, 10));
}

}  // namespace
}  // namespace ferry
