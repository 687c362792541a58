#include "common/ending_signals.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/signal_cleanup.h"

namespace ferry {
namespace {

constexpr unsigned kEndingSeconds = 3;

volatile sig_atomic_t asked_to_end = 0, ending = 0, exit_code = 0;

void AskToEnd(int) {
  asked_to_end = 1;
  ExitSoon(0);
}

}  // namespace

void HandleEndingSignals() {
  int parent_death_signal = 0;  // a supervisor set it
  prctl(PR_GET_PDEATHSIG, &parent_death_signal);
  signal(SIGALRM, [](int) {
    RemoveRegisteredPaths();
    _exit(exit_code);
  });
  signal(SIGTERM, AskToEnd);
  signal(SIGINT, parent_death_signal != 0 ? SIG_IGN : AskToEnd);
}

bool AskedToEnd() { return asked_to_end != 0; }

void ExitSoon(int code) {
  if (ending != 0) return;
  ending = 1;
  exit_code = code;
  alarm(kEndingSeconds);
}

}  // namespace ferry
