#pragma once

// Ctrl-C and SIGTERM as an ordinary event: the first calls a function on a thread of its own, a second one ends the process.

#include <functional>
#include <memory>

namespace ferry {

class InterruptHandler {
 public:
  // Blocks SIGINT and SIGTERM for the whole process: make it before other threads. One at a time.
  explicit InterruptHandler(std::function<void()> on_first);
  ~InterruptHandler();
  bool interrupted() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace ferry
