#pragma once

// Runs `ferry`, which lies beside the tests, through the shell.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/testing/own_cache.h"
#include "tests/testing/source_path.h"

namespace ferry {

inline const std::string kDemoModel = SourcePath("models/demo-moe.gguf");
inline const std::string kOfDemoModel = " -m " + kDemoModel + " ";  // as a command takes it

inline std::string BinaryBeside(const std::string& name) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

struct Output {
  int exit_code = -1;
  std::string out, err;
};

// `before` goes in front of the program's name: variables, `timeout 5`. Output that `arguments` do not redirect is caught.
inline Output RunProgramBeside(const std::string& program, const std::string& arguments, const std::string& before = "") {
  static const OwnCache cache;
  const std::string err_file = ::testing::TempDir() + "/ferry-stderr-" + std::to_string(getpid());
  FILE* const pipe = popen(("{ " + before + " " + BinaryBeside(program) + " " + arguments + "; } 2>" + err_file).c_str(), "r");
  Output output;
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output.out.append(buffer.data(), n);
  const int status = pclose(pipe);
  output.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  std::ifstream err(err_file);
  output.err.assign(std::istreambuf_iterator<char>(err), {});
  std::filesystem::remove(err_file);
  return output;
}

inline Output Ferry(const std::string& arguments, const std::string& before = "") {
  return RunProgramBeside("ferry", arguments, before);
}

// A folder of the test's own.
class TestFolder {
 public:
  TestFolder() {
    std::string folder = ::testing::TempDir() + "/ferry-cli-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) abort();
    path_ = folder;
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace ferry
