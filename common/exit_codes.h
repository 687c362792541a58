#pragma once

namespace ferry {

// The exit code of every Ferry program when a restart would fail the same way: the command line, the input or the machine does
// not fit.
inline constexpr int kExitCannotRun = 2;

}  // namespace ferry
