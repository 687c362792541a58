#pragma once

// The files of gateway/page/, as they were when the program was built.

#include <span>
#include <string_view>

namespace ferry {

struct PageFile {
  std::string_view name;  // "main.js"
  std::string_view bytes;
};

std::span<const PageFile> PageFiles();

}  // namespace ferry
