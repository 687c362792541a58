#pragma once

// How a worker or an expert host ends: a signal asks for it, and an alarm clock ends the process if something hangs meanwhile. A
// process that ends must not stay behind, and another thread may not start then.

namespace ferry {

// Handles SIGTERM and SIGINT from here on: each asks for the end. A process with a supervisor ignores SIGINT: Ctrl-C in a
// terminal reaches both, and the supervisor drains before it sends SIGTERM. Once, before other threads exist.
void HandleEndingSignals();

// Whether a signal asked for the end.
bool AskedToEnd();

// Ends the process with `code` after 3 seconds at the latest. A later call changes neither the code nor the time.
// Async-signal-safe.
void ExitSoon(int code);

}  // namespace ferry
