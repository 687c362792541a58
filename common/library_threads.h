#pragma once

// Threads that libraries start. gRPC counts on every thread that it asks for: where it gets none it aborts, or leaves work for
// that thread undone for ever. So a program of Ferry's tries again for a moment, and then says so and ends.
//
// Replaces pthread_create in the programs that link this file. A sanitizer does the same, so its builds go without.

namespace ferry {

// From here on a library that cannot have a thread within three seconds ends the process with kExitLacksRoom, after a message on
// standard error that names the limit.
void EndWhereALibraryLacksAThread();

// While it lives, its thread is told at once that no thread can be started, as by pthread_create itself.
class HandlesMissingThreads {
 public:
  HandlesMissingThreads();
  ~HandlesMissingThreads();
  HandlesMissingThreads(const HandlesMissingThreads&) = delete;
  HandlesMissingThreads& operator=(const HandlesMissingThreads&) = delete;
};

}  // namespace ferry
