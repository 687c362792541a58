#pragma once

namespace ferry {

// Of every Ferry program: it would end the same way if it were started again as it was, since the command line, the input or the
// machine does not fit.
inline constexpr int kExitCannotRun = 2;

}  // namespace ferry
