#pragma once

// What each of Ferry's programs does around its work, so that nothing that a user or a limit can cause ends in an abort or in a
// result that was lost without a word.

#include <functional>

#include "common/status.h"

namespace ferry {

// Runs `body` and returns the program's exit code, which is `body`'s except where
//  - `body` throws: the exception goes to standard error, the code is 1;
//  - standard output could not be written: the reason is said, the code is 1. A reader that has gone (| head) ends the process by
//    SIGPIPE as it does other tools, unless the parent process left that signal ignored.
// Before `body`: descriptors 0 to 2 are open (a closed one fails when it is used, instead of being taken by the next file),
// writing into a closed pipe or beyond a file size limit is an error and no signal, and signals that end the process remove what
// common/signal_cleanup.h has registered. A library that cannot have a thread ends the process by name
// (common/library_threads.h). Abseil looks for no cycles among the locks of gRPC: as Debian builds it, it would at each of them,
// under a lock of the whole process.
int RunProgram(const char* name, const std::function<int()>& body);

// Writes out everything printed so far. An error: standard output is closed or full, and the program should end.
absl::Status FlushOutput();
// Whether the reader of standard output has gone: nobody needs to be told.
bool OutputReaderIsGone();

}  // namespace ferry
