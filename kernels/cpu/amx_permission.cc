#include "kernels/cpu/amx_permission.h"

#include "kernels/cpu/cpu_kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

namespace ferry {
namespace {

#if defined(__x86_64__) && defined(__linux__)

// CPUID leaf 7: EDX bit 24 is AMX-TILE, bit 25 AMX-INT8.
bool HasTilesOfBytes() {
  constexpr unsigned kBits = 1u << 24 | 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBits) == kBits;
}

sigjmp_buf before_trial;
thread_local volatile sig_atomic_t trying = 0;
void LeaveTrial(int number) {
  if (trying != 0) siglongjmp(before_trial, 1);
  signal(number, SIG_DFL);  // another thread's fault ends the process, as it would have
}

// False also where the instructions are refused by SIGILL, or the memory of the registers by SIGSEGV.
bool Try(AmxTrial trial) {
  constexpr int kSignals[] = {SIGILL, SIGSEGV};
  struct sigaction leave = {}, kept[2];
  leave.sa_handler = LeaveTrial;
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &leave, &kept[i]);
  bool right = false;
  trying = 1;
  if (sigsetjmp(before_trial, 1) == 0) right = trial();
  trying = 0;
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &kept[i], nullptr);
  return right;
}

absl::Status AskAndTry() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  const AmxTrial trial = AmxTrialOfBuild();
  if (trial == nullptr) return FailedPrecondition("this build has no AMX kernels");
  if (!HasTilesOfBytes()) return FailedPrecondition("the processor has no AMX-INT8");
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) {
    return FailedPrecondition("the system refuses the tile registers of AMX: arch_prctl: %s", std::strerror(errno));
  }
  if (!Try(trial)) return FailedPrecondition("the processor shows AMX, but a product of tiles failed");
  return absl::OkStatus();
}

#else

absl::Status AskAndTry() { return FailedPrecondition("this processor family has no AMX"); }

#endif

}  // namespace

absl::Status CheckAmx() {
  static const absl::Status answer = AskAndTry();
  return answer;
}

}  // namespace ferry
