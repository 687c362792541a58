#pragma once

// A folder of mode 0700 for the Unix sockets of a test, gone with it.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace ferry {

class SocketFolder {
 public:
  SocketFolder() {
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~SocketFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  SocketFolder(const SocketFolder&) = delete;
  SocketFolder& operator=(const SocketFolder&) = delete;

  const std::string& path() const { return path_; }
  // "unix:/...": an address to listen on.
  std::string address(const std::string& name = "socket") const { return "unix:" + path_ + "/" + name; }

 private:
  std::string path_ = "/tmp/ferry-test-XXXXXX";
};

}  // namespace ferry
