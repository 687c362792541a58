#pragma once

#include "absl/time/time.h"
#include "common/deadline.h"

namespace ferry {

// A wait that a test expects to end: long enough for a busy machine.
inline Deadline Soon() { return Deadline::In(absl::Seconds(60)); }

}  // namespace ferry
