#pragma once

#include <string>
#include <string_view>

namespace ferry {

// The path of a file of this repository, `relative` to its root.
std::string SourcePath(std::string_view relative);

}  // namespace ferry
