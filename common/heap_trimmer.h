#pragma once

// Gives memory that was freed back to the system. The C library keeps most of it, in pieces between what is still in use: a burst
// of requests would stay with the process for good.

#include <memory>

#include "absl/time/time.h"
#include "common/repeating_thread.h"
#include "common/status.h"

namespace ferry {

// Gives back what is free now, and again after each `pause`. ResourceExhausted: no thread can be started.
absl::StatusOr<std::unique_ptr<RepeatingThread>> StartHeapTrimmer(absl::Duration pause = absl::Seconds(3));

// From now on large pieces of memory go back to the system as soon as they are freed.
void ReturnLargePiecesAtOnce();

}  // namespace ferry
