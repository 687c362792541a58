// Results that cannot be written, and results that would be written over something.

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "common/command_line.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

const std::string kGenerateFour = "generate --backend cpu --temp 0 -p Once -n 4" + kOfDemoModel;

// Every command that prints a result, and help.
const char* const kPrinting[] = {"tokenize -p hello --ids -m MODEL",
                                 "tokenize -p hello -m MODEL",
                                 "detokenize -p '39 489' -m MODEL",
                                 "inspect --json -m MODEL",
                                 "inspect -m MODEL",
                                 "inspect --tensors -m MODEL",
                                 "plan --json --backend cpu -m MODEL",
                                 "plan --backend cpu -m MODEL",
                                 "generate --backend cpu -p Once -n 4 -m MODEL",
                                 "score --backend cpu -p 'Once upon' -m MODEL",
                                 "bench --json --backend cpu -p 8 -n 1 -r 1 -m MODEL",
                                 "--help",
                                 "generate --help",
                                 "--version"};

std::string WithModel(std::string arguments) {
  const size_t at = arguments.find("MODEL");
  return at == std::string::npos ? arguments : arguments.replace(at, 5, kDemoModel);
}

TEST(Outputs, AResultThatCannotBeWrittenIsCodeOneWithTheReason) {
  for (const char* arguments : kPrinting) {
    const Output output = Ferry(WithModel(arguments) + " >/dev/full </dev/null");
    EXPECT_EQ(output.exit_code, 1) << arguments;
    EXPECT_THAT(output.err, HasSubstr("standard output could not be written: No space left on device")) << arguments;
  }
}

TEST(Outputs, AClosedStandardOutputIsNoFileThatIsOpenedLater) {
  const Output output = Ferry("inspect" + kOfDemoModel + ">&-");
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, HasSubstr("standard output could not be written: Bad file descriptor"));
}

TEST(Outputs, AReaderThatHasGoneEndsTheCommandWithoutAWord) {
  const Output output = Ferry("generate --backend cpu -p Once -n 3000 --ignore-eos" + kOfDemoModel + " </dev/null | head -c 5");
  EXPECT_EQ(output.out.size(), 5u);
  EXPECT_EQ(output.err.find("error"), std::string::npos) << output.err;
}

TEST(Outputs, ATraceIsWholeOrNotThereAndSaysSo) {
  const TestFolder folder;
  const std::string trace = folder.File("t.json");
  ASSERT_EQ(Ferry(kGenerateFour + "--trace " + trace).exit_code, 0);
  EXPECT_TRUE(nlohmann::json::parse(std::ifstream(trace)).is_array());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "no other file stays";
}

// A file system of 100 KiB, until this is destroyed.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& folder) : folder_(folder) {
    std::filesystem::create_directory(folder_);
    mounted_ = mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=100k") == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount(folder_.c_str());
  }
  bool mounted() const { return mounted_; }

 private:
  const std::string folder_;
  bool mounted_ = false;
};

TEST(Outputs, ATraceThatDoesNotFitOnItsDiskIsCodeOneWithTheReason) {
  const TestFolder folder;
  const SmallDisk disk(folder.File("disk"));
  if (!disk.mounted()) GTEST_SKIP() << "only root may mount a small disk";
  const std::string trace = folder.File("disk/t.json");
  const Output output = Ferry("generate --backend cpu --temp 0 -p Once -n 400 --ignore-eos" + kOfDemoModel + "--trace " + trace);
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, HasSubstr("--trace " + trace));
  EXPECT_THAT(output.err, HasSubstr("the disk is full"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.File("disk")));
}

TEST(Outputs, NoFileIsReplacedUnlessForced) {
  const TestFolder folder;
  const std::string file = folder.File("kept");
  std::ofstream(file) << "kept";
  for (const std::string& arguments : {kGenerateFour + "--trace " + file, "make-model " + file}) {
    const Output output = Ferry(arguments);
    EXPECT_EQ(output.exit_code, 1) << arguments;
    EXPECT_THAT(output.err, HasSubstr("--force")) << arguments;
    EXPECT_EQ(std::filesystem::file_size(file), 4u) << arguments;
  }
  EXPECT_EQ(Ferry("make-model --force " + file).exit_code, 0);
  EXPECT_EQ(Ferry(kGenerateFour + "--force --trace " + file).exit_code, 0);
  EXPECT_TRUE(nlohmann::json::parse(std::ifstream(file)).is_array());
}

TEST(Outputs, AKeyIsAddedToAFileOfKeysAlone) {
  const TestFolder folder;
  const std::string model = folder.File("m.gguf"), keys = folder.File("keys");
  std::filesystem::copy_file(kDemoModel, model);
  ASSERT_EQ(mkfifo(folder.File("pipe").c_str(), 0600), 0);
  for (const std::string& file : {model, folder.path().string(), folder.File("pipe"), std::string("/dev/full")}) {
    const Output output = Ferry("api-key alice --file " + file, "timeout 20");
    EXPECT_THAT(output.exit_code, ::testing::AnyOf(1, 2)) << file << ": " << output.err;
    EXPECT_EQ(output.out, "") << file;
  }
  EXPECT_EQ(std::filesystem::file_size(model), std::filesystem::file_size(kDemoModel));
  EXPECT_EQ(Ferry("api-key alice --file " + keys).exit_code, 0);
  EXPECT_EQ(Ferry("api-key bob --file " + keys).exit_code, 0);
  const Output again = Ferry("api-key alice --file " + keys);
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("the name alice of an earlier line"));
}

TEST(Outputs, NoInputIsReplacedByWhateverName) {
  const TestFolder folder;
  const std::string model = folder.File("m.gguf"), prompt = folder.File("p.txt");
  std::filesystem::copy_file(kDemoModel, model);
  std::filesystem::create_hard_link(model, folder.File("hard.gguf"));
  std::filesystem::create_symlink(model, folder.File("soft.gguf"));
  std::ofstream(prompt) << "Once upon";
  const auto size = std::filesystem::file_size(model);
  const std::string run = "generate --backend cpu -n 2 --force -f " + prompt + " -m " + model + " --trace ";
  for (const std::string& trace : {model, folder.File("hard.gguf"), folder.File("soft.gguf"), prompt}) {
    const Output output = Ferry(run + trace);
    EXPECT_EQ(output.exit_code, 1) << trace;
    EXPECT_THAT(output.err, HasSubstr("which is read")) << trace;
  }
  EXPECT_EQ(std::filesystem::file_size(model), size);
  EXPECT_EQ(std::filesystem::file_size(prompt), 9u);
}

TEST(Outputs, NoFileOfAServerIsReplaced) {
  const TestFolder folder;
  const std::string keys = folder.File("keys"), jinja = folder.File("jinja");
  ASSERT_EQ(Ferry("api-key alice --file " + keys).exit_code, 0);
  std::ofstream(jinja) << "{{ messages }}";
  const auto size = std::filesystem::file_size(keys);
  const std::string with_keys = kOfDemoModel + "--api-keys " + keys + " --force --port 0 ";
  const std::pair<const char*, std::string> runs[] = {
      {"ferry", "serve --backend cpu --http-port 0 --trace " + keys + with_keys},
      {"ferry", "serve --backend cpu --http-port 0 --trace " + jinja + " --chat-template-file " + jinja + with_keys},
      {"ferry-coordinator", "--trace " + keys + with_keys},
      {"ferry-coordinator", "--port-file " + keys + with_keys},
      {"ferry-coordinator", "--force --port 0 --port-file " + kDemoModel + kOfDemoModel},
      {"ferry-gateway", "--listen 127.0.0.1:0 --force --api-key-file " + keys + " --port-file " + keys},
      {"ferry-gateway", "--listen 127.0.0.1:0 --force --chat-template-file " + jinja + " --port-file " + jinja}};
  for (const auto& [program, arguments] : runs) {
    const Output output = RunProgramBeside(program, arguments + " </dev/null", "timeout 30");
    EXPECT_THAT(output.exit_code, ::testing::AnyOf(1, 2)) << program << " " << arguments << output.err;
    EXPECT_THAT(output.err, HasSubstr("which is read")) << program << " " << arguments;
  }
  EXPECT_EQ(std::filesystem::file_size(keys), size);
  EXPECT_EQ(std::filesystem::file_size(jinja), 14u);
}

TEST(Outputs, WhatIsNoFileIsNeverReplaced) {
  const TestFolder folder;
  const std::string pipe = folder.File("pipe"), link = folder.File("link"), target = folder.File("target");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::ofstream(target) << "kept";
  std::filesystem::create_symlink(target, link);
  for (const std::string& path : {std::string("/dev/null"), pipe, link, folder.path().string()}) {
    for (const std::string& arguments : {"make-model --force " + path, kGenerateFour + "--force --trace " + path}) {
      const Output output = Ferry(arguments);
      EXPECT_EQ(output.exit_code, 1) << arguments;
      EXPECT_THAT(output.err, HasSubstr(path + " is a ")) << arguments;
    }
  }
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(std::filesystem::file_size(target), 4u);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

}  // namespace
}  // namespace ferry
