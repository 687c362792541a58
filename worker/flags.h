#pragma once

// The command line of ferry-worker.

#include <CLI/CLI.hpp>

#include "worker/worker_process.h"

namespace ferry {

// Adds every flag; `options` outlives the parse.
void AddWorkerFlags(CLI::App& app, WorkerOptions& options);

}  // namespace ferry
