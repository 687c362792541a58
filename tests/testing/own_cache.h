#pragma once

// Keeps what Ferry's processes would keep in the user's cache directory in a folder of this test's own.

#include <stdlib.h>

#include <filesystem>
#include <string>

namespace ferry {

// Child processes inherit it. One at a time; before threads are started.
class OwnCache {
 public:
  OwnCache() {
    std::string folder = (std::filesystem::temp_directory_path() / "ferry-test-cache-XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) abort();
    folder_ = folder;
    setenv("XDG_CACHE_HOME", folder_.c_str(), /*overwrite=*/1);
  }
  ~OwnCache() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
};

}  // namespace ferry
