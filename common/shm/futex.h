#pragma once

// Sleeping until a 32-bit word changes, within a process or across the processes that share its memory.

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

#include "absl/time/time.h"
#include "common/deadline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ferry {

enum class FutexScope { kProcess, kShared };

// Returns when `word` no longer holds `expected`, after FutexWake, at the deadline, or for no reason: look again.
inline void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline, FutexScope scope) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t) && std::atomic<uint32_t>::is_always_lock_free);
  // This operation takes a moment of CLOCK_MONOTONIC, where FUTEX_WAIT takes a duration.
  const int operation = FUTEX_WAIT_BITSET | (scope == FutexScope::kProcess ? FUTEX_PRIVATE_FLAG : 0);
  const timespec until = deadline.ToTimespec();
  const timespec* const limit = deadline == Deadline::Never() ? nullptr : &until;
  syscall(SYS_futex, &word, operation, expected, limit, nullptr, FUTEX_BITSET_MATCH_ANY);
}

// Wakes at most `count` waiters; call it after the word has changed.
inline void FutexWake(const std::atomic<uint32_t>& word, FutexScope scope, int count = INT_MAX) {
  syscall(SYS_futex, &word, scope == FutexScope::kProcess ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE, count, nullptr, nullptr, 0);
}

// One turn of a spinning loop.
inline void SpinPause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long to spin before sleeping. The parts of a decode step follow each other within this time, and a sleeping thread wakes 30
// to 50 us late. Decode of gpt-oss-120b's layers without slots on 16 cores: 384 t/s, 355
// with 20 us; on two cores neither better nor worse (docs/tried.md).
inline constexpr absl::Duration kSpinBeforeSleep = absl::Microseconds(500);

// Spins until done() is true or `duration` has passed; returns whether done() was. It yields the core to other threads meanwhile:
// often one of them, in another process, makes done() true.
template <typename Done>
bool SpinUntil(absl::Duration duration, const Done& done) {
  if (done()) return true;
  if (duration <= absl::ZeroDuration()) return false;
  const Deadline end = Deadline::In(duration);
  for (;;) {
    // The clock and the kernel cost as much as several turns, so the loop asks them after sixteen.
    for (int turn = 0; turn < 16; ++turn) {
      if (done()) return true;
      SpinPause();
    }
    if (end.Passed()) return done();
    sched_yield();
  }
}

}  // namespace ferry
