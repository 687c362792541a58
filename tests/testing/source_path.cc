#include "tests/testing/source_path.h"

namespace ferry {

std::string SourcePath(std::string_view relative) { return std::string(FERRY_SOURCE_DIR "/").append(relative); }

}  // namespace ferry
