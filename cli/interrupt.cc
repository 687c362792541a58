#include "cli/interrupt.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "common/signal_cleanup.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {
sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  return set;
}
}  // namespace

struct InterruptHandler::State {
  std::atomic<bool> interrupted{false};
  std::atomic<bool> stop{false};
  std::thread thread;
};

void ExitInterrupted() {
  RemoveRegisteredPaths();
  _exit(130);  // the children die with us
}

InterruptHandler::InterruptHandler() : state_(std::make_unique<State>()) {}

absl::StatusOr<std::unique_ptr<InterruptHandler>> InterruptHandler::Start(std::function<void()> on_first) {
  return Start([on_first = std::move(on_first)](int) { on_first(); });
}

absl::StatusOr<std::unique_ptr<InterruptHandler>> InterruptHandler::Start(std::function<void(int)> on_first) {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::unique_ptr<InterruptHandler> handler(new InterruptHandler);
  State* const state = handler->state_.get();
  ASSIGN_OR_RETURN(state->thread, StartThread([state, set, on_first = std::move(on_first)] {
                     while (!state->stop) {
                       const timespec poll = {.tv_sec = 0, .tv_nsec = 50'000'000};
                       const int signal = sigtimedwait(&set, nullptr, &poll);
                       if (signal < 0) continue;
                       if (state->interrupted.exchange(true)) ExitInterrupted();
                       on_first(signal);
                     }
                   }));
  return handler;
}

InterruptHandler::~InterruptHandler() {
  state_->stop = true;
  if (state_->thread.joinable()) state_->thread.join();
}

void InterruptHandler::Rearm() { state_->interrupted = false; }

bool InterruptHandler::interrupted() const { return state_->interrupted; }

}  // namespace ferry
