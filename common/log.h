#pragma once

// One logger a process, to standard error; standard output is for results only. Call sites use spdlog's functions. The format is
// "HH:MM:SS.mmm LEVEL process: message".

#include <string>
#include <vector>

#include "spdlog/spdlog.h"

namespace ferry {

inline const std::vector<const char*> kLogLevels = {"trace", "debug", "info", "warn", "error", "off"};

// `process`: "coordinator", "worker 1". `level`: trace, debug, info, warn, error, off; anything else is info with a warning.
void InitLog(const std::string& process, const std::string& level);

}  // namespace ferry
