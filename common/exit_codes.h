#pragma once

namespace ferry {

// Exit codes of Ferry's programs that tell a supervisor whether another start may help. Every other failure ends with 1.

// The command line, the input or the machine does not fit: another start ends the same way.
inline constexpr int kExitCannotRun = 2;
// Memory of the device or the host, threads or descriptors do not suffice. Another start may help where a process that has just
// ended still held some of them.
inline constexpr int kExitLacksRoom = 3;
// A worker: the coordinator did not send the weights, because the model file is no longer what the coordinator opened.
inline constexpr int kExitModelChanged = 4;
// A program that could not be executed, as shells say it.
inline constexpr int kExitNoProgram = 127;

}  // namespace ferry
