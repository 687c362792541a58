#pragma once

// Ctrl-C, SIGTERM and SIGHUP as an ordinary event: the first calls a function on a thread of its own, a second one ends the
// process.

#include <functional>
#include <memory>

#include "common/status.h"

namespace ferry {

class InterruptHandler {
 public:
  // Blocks the signals for the whole process: make it before other threads. One at a time. ResourceExhausted: no thread can be
  // started.
  static absl::StatusOr<std::unique_ptr<InterruptHandler>> Start(std::function<void()> on_first);
  // The same, and `on_first` is told which signal came.
  static absl::StatusOr<std::unique_ptr<InterruptHandler>> Start(std::function<void(int)> on_first);
  ~InterruptHandler();
  bool interrupted() const;
  // The next signal is a first one again.
  void Rearm();

 private:
  struct State;
  InterruptHandler();
  const std::unique_ptr<State> state_;
};

// Ends the process at once with code 130, without destructors, and leaves no temporary files.
[[noreturn]] void ExitInterrupted();

}  // namespace ferry
