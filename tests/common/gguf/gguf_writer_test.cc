#include "common/gguf/gguf_writer.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Bytes that tell where in the tensor they are.
void Count(uint64_t offset, std::span<std::byte> out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>((offset + i) * 2654435761u >> 13);
}

std::vector<std::byte> ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> chars((std::istreambuf_iterator<char>(file)), {});
  const std::span<const std::byte> bytes = std::as_bytes(std::span(chars));
  return {bytes.begin(), bytes.end()};
}

class GgufWriterFiles : public testing::Test {
 protected:
  GgufWriterFiles() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ferry_writer_XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~GgufWriterFiles() override { std::filesystem::remove_all(folder_); }
  std::string Path(std::string_view name) const { return (folder_ / name).string(); }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

  std::filesystem::path folder_;
};

TEST(GgufBytes, WritesFieldsAsTheFormatHasThem) {
  GgufBytes bytes;
  bytes.Add(uint16_t{0x0102}).String("ab").Add(GgufType::kBool).PadTo(32);
  ASSERT_EQ(bytes.bytes().size(), 32u);
  const std::byte want[] = {std::byte{2}, std::byte{1}, std::byte{2}};
  EXPECT_TRUE(std::equal(std::begin(want), std::end(want), bytes.bytes().begin()));
  EXPECT_EQ(bytes.bytes()[10], std::byte{'a'});
  EXPECT_EQ(bytes.bytes()[12], std::byte{7});
}

TEST(GgufWriter, KeepsTheLastValueOfAKeyInItsFirstPlace) {
  GgufWriter writer;
  writer.SetUint8("a", 1);
  writer.SetUint8("b", 2);
  writer.SetString("a", "new");
  writer.SetUint8("c", 3);
  writer.Remove("c");
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  ASSERT_EQ(file.entries().size(), 2u);
  EXPECT_EQ(file.entries()[0].key, "a");
  EXPECT_EQ(*file.GetString("a"), "new");
}

TEST(GgufWriter, RefusesTensorsThatCannotBe) {
  GgufWriter writer;
  const auto add = [&](DType dtype, std::vector<int64_t> dims, size_t bytes) {
    return writer.AddTensor("t", dtype, std::move(dims), std::vector<std::byte>(bytes));
  };
  EXPECT_THAT(add(DType::kF32, {4}, 15), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("takes 16 bytes")));
  EXPECT_THAT(add(DType::kF32, {}, 4), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(add(DType::kF32, {4, 0}, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(add(DType::kF32, {-4}, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(add(DType::kQ8_0, {33}, 34), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(add(DType(77), {4}, 4), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("77")));
}

TEST_F(GgufWriterFiles, WritesTheSameBytesToMemoryAndWithAnyNumberOfThreads) {
  GgufWriter writer;
  writer.SetString("general.name", "x");
  ASSERT_OK(writer.AddTensor("large", DType::kQ8_0, {3200, 1000}, Count));  // 3.4 MB: several chunks
  ASSERT_OK(writer.AddTensor("odd", DType::kF32, {7}, Count));
  ASSERT_OK(writer.AddTensor("last", DType::kF16, {1}, Count));
  const std::vector<std::byte> memory = writer.ToBytes();
  for (const int threads : {1, 4}) {
    uint64_t done = 0, total = 0;
    ASSERT_OK(writer.WriteFile(Path("x.gguf"),
                               {.num_threads = threads, .num_shards = 1, .force = true, .progress = [&](uint64_t a, uint64_t b) {
                                  done = a, total = b;
                                }}));
    EXPECT_TRUE(ReadAll(Path("x.gguf")) == memory);
    EXPECT_EQ(total, memory.size());
    EXPECT_GT(done, 3'400'000u);
  }
  EXPECT_THAT(Names(), ElementsAre("x.gguf"));  // nothing temporary is left

  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(memory));
  std::vector<std::byte> want(3'400'000);
  Count(0, want);
  EXPECT_TRUE(std::ranges::equal(file.FindTensor("large")->data, want));
}

TEST_F(GgufWriterFiles, SplitsAModelIntoFilesOfLikeSize) {
  GgufWriter writer;
  writer.SetString("general.name", "x");
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(writer.AddTensor(absl::StrFormat("t%d", i), DType::kF32, {1000}, Count));
  }
  ASSERT_OK(writer.WriteFile(Path("x.gguf"), {.num_threads = 2, .num_shards = 3}));
  EXPECT_THAT(Names(), ElementsAre("x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(Path("x-00002-of-00003.gguf")));
  ASSERT_EQ(file.tensors().size(), 10u);
  int in_shard[3] = {0, 0, 0};
  for (const TensorInfo& tensor : file.tensors()) ++in_shard[tensor.shard];
  EXPECT_THAT(in_shard, ElementsAre(4, 3, 3));
}

TEST_F(GgufWriterFiles, MakesNoMoreFilesThanTensors) {
  GgufWriter writer;
  ASSERT_OK(writer.AddTensor("a", DType::kF32, {1}, Count));
  ASSERT_OK(writer.AddTensor("b", DType::kF32, {1000}, Count));
  ASSERT_OK(writer.WriteFile(Path("x.gguf"), {.num_threads = 1, .num_shards = 9}));
  ASSERT_LE(Names().size(), 2u);
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(Path(Names()[0])));
  EXPECT_EQ(file.tensors().size(), 2u);
}

TEST_F(GgufWriterFiles, NamesThePathThatCannotBeWritten) {
  EXPECT_THAT(GgufWriter().WriteFile(Path("no/such/folder/x.gguf")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no/such/folder/x.gguf")));
}

}  // namespace
}  // namespace ferry
