#pragma once

// The one table of flags that people type for llama.cpp, ik_llama.cpp, vLLM and KTransformers and that Ferry does not have under
// that spelling. Flags that Ferry has too, such as -m, -ub and -ctk, are not in it: the commands add them.

#include <span>

#include "common/argument_reader.h"

namespace ferry {

// The first row that has a spelling for a command counts. The result lives as long as the program.
std::span<const ForeignFlag> ForeignFlags();

}  // namespace ferry
