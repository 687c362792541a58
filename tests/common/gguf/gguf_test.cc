#include "common/gguf/gguf.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "common/gguf/gguf_writer.h"
#include "common/model/make_model.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kHuge = uint64_t{1} << 63;

// What a refusal says: InvalidArgument, with these words, and where in the file.
template <typename... Words>
auto Refuses(Words... words) {
  return StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("at byte "), HasSubstr(words)...));
}

// A file that is used after this call has its bytes in a variable, which it borrows.
absl::StatusOr<GgufFile> Parse(const GgufBytes& bytes) { return GgufFile::Parse(bytes.bytes()); }

// A file of one key, whose type and value follow.
GgufBytes OneKey(std::string_view key = "some.key") {
  GgufBytes bytes;
  bytes.Header(0, 1).String(key);
  return bytes;
}

// A file of one F32 tensor "t" with these dims and its data offset, followed by `data_bytes` of data.
GgufBytes OneTensor(std::vector<uint64_t> dims, uint64_t offset, size_t data_bytes, DType type = DType::kF32) {
  GgufBytes bytes;
  bytes.Header(1, 0).Tensor("t", dims, type, offset).PadTo(32).Zeros(data_bytes);
  return bytes;
}

// ---- what a good file gives

TEST(Gguf, ReadsMetadataOfEveryType) {
  GgufWriter writer;
  writer.SetUint8("u8", 255);
  writer.SetInt8("i8", -128);
  writer.SetUint16("u16", 65535);
  writer.SetInt16("i16", -32768);
  writer.SetUint32("u32", 4294967295u);
  writer.SetInt32("i32", -7);
  writer.SetUint64("u64", 1u << 31);
  writer.SetInt64("i64", std::numeric_limits<int64_t>::min());
  writer.SetFloat32("f32", 0.5f);
  writer.SetFloat64("f64", 0.1);
  writer.SetBool("bool", true);
  writer.SetString("string", std::string_view("a\0\xff", 3));
  writer.SetStrings("strings", std::vector<std::string>{"x", "", "yz"});
  writer.SetInt32s("ints", std::vector<int32_t>{1, -1});
  writer.SetFloat32s("floats", std::vector<float>{1.5f});
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));

  EXPECT_EQ(*file.GetInt("u8"), 255);
  EXPECT_EQ(*file.GetInt("i8"), -128);
  EXPECT_EQ(*file.GetInt("u16"), 65535);
  EXPECT_EQ(*file.GetInt("i16"), -32768);
  EXPECT_EQ(*file.GetInt("u32"), 4294967295);
  EXPECT_EQ(*file.GetInt("i32"), -7);
  EXPECT_EQ(*file.GetInt("u64"), int64_t{1} << 31);
  EXPECT_EQ(*file.GetInt("i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(*file.GetFloat("f32", 0, 1), 0.5);
  EXPECT_EQ(*file.GetFloat("f64", 0, 1), 0.1);
  EXPECT_TRUE(*file.GetBool("bool"));
  EXPECT_EQ(*file.GetString("string"), std::string_view("a\0\xff", 3));
  EXPECT_THAT(*file.GetStrings("strings"), ElementsAre("x", "", "yz"));
  EXPECT_THAT(*file.GetInts("ints"), ElementsAre(1, -1));
  EXPECT_THAT(*file.GetFloats("floats"), ElementsAre(1.5));
  EXPECT_EQ(file.entries().size(), 15u);
  EXPECT_EQ(GgufFile::ValueToString(*file.FindEntry("strings"), 2), "[x, , ... 3 in all]");
  EXPECT_EQ(GgufFile::ValueToString(*file.FindEntry("string")), "a\\x00\\xff");
}

TEST(Gguf, FindsTensorsAndTheirBytes) {
  GgufWriter writer;
  std::vector<std::byte> numbers(4 * 6);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::byte(i);
  ASSERT_OK(writer.AddTensor("first", DType::kQ8_0, {32, 2}, std::vector<std::byte>(68)));
  ASSERT_OK(writer.AddTensor("second", DType::kF32, {3, 1, 2}, numbers));
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));

  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.FindTensor("third"), nullptr);
  const TensorInfo* const first = file.FindTensor("first");
  const TensorInfo* const second = file.FindTensor("second");
  ASSERT_TRUE(first != nullptr && second != nullptr);
  EXPECT_EQ(first, &file.tensors()[0]);
  EXPECT_EQ(first->dtype, DType::kQ8_0);
  EXPECT_EQ(first->rows(), 2);
  EXPECT_EQ(first->cols(), 32);
  EXPECT_EQ(first->bytes(), 68u);
  EXPECT_EQ(first->row_bytes(), 34u);
  EXPECT_THAT(second->dims, ElementsAre(3, 1, 2, 1));
  EXPECT_EQ(second->num_dims, 3);
  EXPECT_EQ(DimsToString(*second), "[3, 1, 2]");
  EXPECT_EQ(second->file_offset % 32, 0u);
  EXPECT_TRUE(std::equal(numbers.begin(), numbers.end(), second->data.begin(), second->data.end()));
  EXPECT_EQ(second->data.data(), bytes.data() + second->file_offset);
}

TEST(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufWriter writer(/*alignment=*/4096, /*version=*/2);
  ASSERT_OK(writer.AddTensor("t", DType::kF32, {4}, std::vector<std::byte>(16)));
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  EXPECT_EQ(file.version(), 2u);
  EXPECT_EQ(file.FindTensor("t")->file_offset, 4096u);
}

TEST(Gguf, OpensAFileOfMetadataAlone) {
  const GgufBytes bytes = OneKey().Add(GgufType::kUint8).Add(uint8_t{1});
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_TRUE(file.Has("some.key"));
}

TEST(Gguf, StaysValidWhenMoved) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes({}));
  ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Parse(bytes));
  const TensorInfo* const tensor = file.FindTensor("blk.1.attn_q.weight");
  const GgufFile moved = std::move(file);
  EXPECT_EQ(moved.FindTensor("blk.1.attn_q.weight"), tensor);
  EXPECT_EQ(*moved.GetString("general.architecture"), "gpt-oss");
}

// ---- the header

TEST(GgufHostile, RefusesAnotherMagic) {
  GgufBytes bytes;
  bytes.Raw("GGML").Zeros(60);
  EXPECT_THAT(Parse(bytes), Refuses("not a GGUF file", "GGML"));
}

TEST(GgufHostile, RefusesOtherVersions) {
  for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
    EXPECT_THAT(Parse(GgufBytes().Header(0, 0, version)), Refuses("version " + std::to_string(version)));
  }
}

TEST(GgufHostile, RefusesABigEndianFileByName) {
  EXPECT_THAT(Parse(GgufBytes().Header(0, 0, 0x03000000)), Refuses("big-endian"));
}

TEST(GgufHostile, RefusesMoreKeysThanBytes) {
  for (const uint64_t count : {uint64_t{2}, uint64_t{1} << 19, uint64_t{1} << 60, kHuge, ~uint64_t{0}}) {
    EXPECT_THAT(Parse(GgufBytes().Header(0, count).Zeros(14)), Refuses(std::to_string(count) + " keys"));
  }
}

TEST(GgufHostile, RefusesMoreTensorsThanBytes) {
  for (const uint64_t count : {uint64_t{2}, uint64_t{1} << 19, uint64_t{1} << 60, kHuge, ~uint64_t{0}}) {
    EXPECT_THAT(Parse(GgufBytes().Header(count, 0).Zeros(33)), Refuses(std::to_string(count) + " tensors"));
  }
}

TEST(GgufHostile, RefusesEveryTruncation) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes({.layers = 1, .vocab = 261}));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  const uint64_t data_start = file.tensors()[0].file_offset;
  for (size_t size = 0; size < data_start; size += size < 2000 ? 1 : 13) {
    ASSERT_THAT(GgufFile::Parse(std::span(bytes).first(size)), Not(IsOk())) << size;
  }
  const TensorInfo& last = file.tensors().back();
  const uint64_t end = last.file_offset + last.bytes();
  EXPECT_OK(GgufFile::Parse(std::span(bytes).first(end)));
  EXPECT_THAT(GgufFile::Parse(std::span(bytes).first(end - 1)),
              Refuses(std::string(last.name), "has " + std::to_string(end - 1) + " bytes", "of the " + std::to_string(end),
                      "truncated, as by an interrupted download"));
}

// Damage anywhere in the description is refused or harmless, but is never followed (the sanitizer suite sees to that).
TEST(GgufHostile, SurvivesAnyDamagedByte) {
  ASSERT_OK_AND_ASSIGN(std::vector<std::byte> bytes, MakeModelBytes({.layers = 1, .vocab = 261}));
  uint64_t header_bytes = 0;
  {
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
    header_bytes = file.tensors()[0].file_offset;
  }
  for (size_t at = 0; at < header_bytes; ++at) {
    const std::byte good = bytes[at];
    for (const unsigned damage : {0x01u, 0x80u, 0xffu}) {
      bytes[at] = good ^ std::byte(damage);
      if (const absl::StatusOr<GgufFile> file = GgufFile::Parse(bytes); file.ok()) {
        for (const GgufEntry& entry : file->entries()) GgufFile::ValueToString(entry, 1000);
        for (const TensorInfo& tensor : file->tensors()) ASSERT_LE(tensor.file_offset + tensor.bytes(), bytes.size());
      }
    }
    bytes[at] = good;
  }
}

// ---- keys and values

TEST(GgufHostile, RefusesAKeyOfAbsurdLength) {
  for (const uint64_t size : {uint64_t{1000}, uint64_t{1} << 32, kHuge, ~uint64_t{0}}) {
    GgufBytes bytes;
    bytes.Header(0, 1).Add(size).Zeros(64);
    EXPECT_THAT(Parse(bytes), Refuses("key", "truncated"));
  }
}

TEST(GgufHostile, RefusesAKeyAboveTheFormatsLimit) {
  EXPECT_THAT(Parse(OneKey(std::string(65536, 'k')).Add(GgufType::kUint8).Add(uint8_t{1})), Refuses("at most 65535"));
}

TEST(GgufHostile, RefusesAnEmptyKey) {
  EXPECT_THAT(Parse(OneKey("").Add(GgufType::kUint32).Add(uint32_t{1})), Refuses("key is empty"));
}

TEST(GgufHostile, RefusesANulInAKey) {
  const std::string key("general.alignment\0x", 19);
  EXPECT_THAT(Parse(OneKey(key).Add(GgufType::kUint32).Add(uint32_t{1})), Refuses("general.alignment\\x00x", "NUL"));
}

TEST(GgufHostile, RefusesAKeyThatOccursTwice) {
  GgufBytes bytes;
  bytes.Header(0, 3);
  bytes.Key("twice", GgufType::kUint8).Add(uint8_t{1});
  bytes.Key("once", GgufType::kUint8).Add(uint8_t{1});
  bytes.Key("twice", GgufType::kString).String("x");
  EXPECT_THAT(Parse(bytes), Refuses("key 'twice'", "occurs twice"));
}

TEST(GgufHostile, RefusesUnknownValueTypes) {
  for (const uint32_t type : {13u, 255u, 0xffffffffu}) {
    EXPECT_THAT(Parse(OneKey().Add(type).Zeros(32)), Refuses("key 'some.key'", "value type " + std::to_string(type)));
    EXPECT_THAT(Parse(OneKey().Add(GgufType::kArray).Add(type).Zeros(32)),
                Refuses("key 'some.key'", "element type " + std::to_string(type)));
  }
}

TEST(GgufHostile, RefusesAStringLongerThanTheFile) {
  // 2^32 + 1 would be 1 if the length were narrowed before it is compared.
  for (const uint64_t size : {uint64_t{65}, (uint64_t{1} << 32) + 1, kHuge - 1, kHuge, ~uint64_t{0} - 7}) {
    EXPECT_THAT(Parse(OneKey().Add(GgufType::kString).Add(size).Zeros(64)), Refuses("key 'some.key'", "truncated"));
  }
}

TEST(GgufHostile, RefusesAnArrayLongerThanTheFile) {
  for (const GgufType type : {GgufType::kUint8, GgufType::kFloat64, GgufType::kBool, GgufType::kString}) {
    // 2^61 elements of 8 bytes are 0 bytes modulo 2^64.
    for (const uint64_t count : {uint64_t{65}, uint64_t{1} << 61, kHuge, ~uint64_t{0}}) {
      EXPECT_THAT(Parse(OneKey().Add(GgufType::kArray).Add(type).Add(count).Zeros(64)), Refuses("key 'some.key'"))
          << NameOf(type) << " " << count;
    }
  }
}

TEST(GgufHostile, RefusesAStringOfAnArrayLongerThanTheFile) {
  EXPECT_THAT(Parse(OneKey("tokenizer.ggml.tokens")
                        .Add(GgufType::kArray)
                        .Add(GgufType::kString)
                        .Add(uint64_t{2})
                        .String("fine")
                        .Add(kHuge)
                        .Zeros(8)),
              Refuses("key 'tokenizer.ggml.tokens'", "2^63 or more"));
}

TEST(GgufHostile, RefusesArraysOfArrays) {
  EXPECT_THAT(Parse(OneKey().Add(GgufType::kArray).Add(GgufType::kArray).Add(uint64_t{1}).Zeros(32)),
              Refuses("key 'some.key'", "arrays of arrays"));
}

TEST(GgufHostile, RefusesABoolThatIsNeitherTrueNorFalse) {
  EXPECT_THAT(Parse(OneKey().Add(GgufType::kBool).Add(uint8_t{2})), Refuses("key 'some.key'", "a bool is 2"));
}

TEST(GgufHostile, RefusesAnAlignmentOfAnotherType) {
  EXPECT_THAT(Parse(OneKey("general.alignment").Add(GgufType::kUint64).Add(uint64_t{32})),
              Refuses("key 'general.alignment'", "u64, want u32"));
  EXPECT_THAT(Parse(OneKey("general.alignment").Add(GgufType::kString).String("32")), Refuses("want u32"));
}

TEST(GgufHostile, RefusesAnAlignmentThatIsNoBoundedPowerOfTwo) {
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 131072u, 0x80000000u, 0xffffffffu}) {
    EXPECT_THAT(Parse(OneKey("general.alignment").Add(GgufType::kUint32).Add(alignment)),
                Refuses("key 'general.alignment'", "is " + std::to_string(alignment)));
  }
}

// ---- reading values

TEST(GgufHostile, RefusesAnArrayReadAsAnotherType) {
  const GgufBytes bytes = OneKey("tokenizer.ggml.scores").Add(GgufType::kArray).Add(GgufType::kInt8).Add(uint64_t{3}).Zeros(3);
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_THAT(file.GetFloats("tokenizer.ggml.scores"),
              Refuses("key 'tokenizer.ggml.scores'", "array of i8", "want array of f32"));
  EXPECT_THAT(file.GetStrings("tokenizer.ggml.scores"), Refuses("array of i8", "want array of string"));
  EXPECT_THAT(file.GetInt("tokenizer.ggml.scores"), Refuses("array of i8", "want an integer"));
  EXPECT_OK(file.GetInts("tokenizer.ggml.scores"));
}

TEST(GgufHostile, RefusesAScalarReadAsAnotherType) {
  const GgufBytes bytes = OneKey().Add(GgufType::kFloat32).Add(1.0f);
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_THAT(file.GetInt("some.key"), Refuses("key 'some.key'", "f32, want an integer"));
  EXPECT_THAT(file.GetBool("some.key"), Refuses("want bool"));
  EXPECT_THAT(file.GetString("some.key"), Refuses("want string"));
  EXPECT_THAT(file.GetInts("some.key"), Refuses("want array of an integer type"));
}

TEST(GgufHostile, RefusesANumberOutOfRange) {
  GgufBytes bytes;
  bytes.Header(0, 4);
  bytes.Key("large", GgufType::kUint64).Add(kHuge);
  bytes.Key("negative", GgufType::kInt32).Add(int32_t{-1});
  bytes.Key("nan", GgufType::kFloat32).Add(std::numeric_limits<float>::quiet_NaN());
  bytes.ArrayKey("ids", GgufType::kInt32, 2).Add(int32_t{5}).Add(int32_t{-5});
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_THAT(file.GetInt("large"), Refuses("key 'large'", "9223372036854775808"));
  EXPECT_THAT(file.GetInt("negative", 0, 10), Refuses("key 'negative'", "is -1, want 0 to 10"));
  EXPECT_THAT(file.GetFloat("nan", -1e30, 1e30), Refuses("key 'nan'", "is nan"));
  EXPECT_THAT(file.GetInts("ids", 0, 100), Refuses("key 'ids'", "is -5"));
}

TEST(Gguf, NamesAMissingKeyUnlessThereIsADefault) {
  const GgufBytes bytes = GgufBytes().Header(0, 0);
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_THAT(file.GetInt("gpt-oss.block_count"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("key 'gpt-oss.block_count' is missing")));
  EXPECT_EQ(*file.GetIntOr("k", 3), 3);
  EXPECT_EQ(*file.GetFloatOr("k", 0.5, 0, 1), 0.5);
  EXPECT_EQ(*file.GetStringOr("k", "x"), "x");
  EXPECT_TRUE(*file.GetBoolOr("k", true));
}

TEST(Gguf, AppliesNoDefaultToAKeyOfTheWrongType) {
  const GgufBytes bytes = OneKey().Add(GgufType::kString).String("7");
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Parse(bytes));
  EXPECT_THAT(file.GetIntOr("some.key", 3), Refuses("string, want an integer"));
}

// ---- tensors

TEST(GgufHostile, RefusesOtherThanOneToFourDimensions) {
  EXPECT_THAT(Parse(OneTensor({}, 0, 64)), Refuses("tensor 't'", "has 0 dimensions"));
  EXPECT_THAT(Parse(OneTensor({1, 1, 1, 1, 1}, 0, 64)), Refuses("tensor 't'", "has 5 dimensions"));
  GgufBytes bytes;
  bytes.Header(1, 0).String("t").Add(uint32_t{0xffffffff}).Zeros(64);
  EXPECT_THAT(Parse(bytes), Refuses("has 4294967295 dimensions"));
}

TEST(GgufHostile, RefusesADimensionOfZero) {
  EXPECT_THAT(Parse(OneTensor({4, 0}, 0, 64)), Refuses("tensor 't'", "dimension 1 is 0"));
}

TEST(GgufHostile, RefusesElementsThatOverflow) {
  // 2^32 * 2^32 is 0 modulo 2^64; 2^61 floats are 2^63 bytes.
  EXPECT_THAT(Parse(OneTensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 64)), Refuses("tensor 't'", "2^63"));
  EXPECT_THAT(Parse(OneTensor({~uint64_t{0}}, 0, 64)), Refuses("tensor 't'", "2^63"));
  EXPECT_THAT(Parse(OneTensor({uint64_t{1} << 61}, 0, 64)), Refuses("tensor 't'", "2^63 bytes"));
  EXPECT_THAT(Parse(OneTensor({uint64_t{1} << 62, 2}, 0, 64)), Refuses("tensor 't'", "2^63"));
}

TEST(GgufHostile, RefusesUnknownAndRemovedTensorTypes) {
  for (const uint32_t type : {4u, 5u, 31u, 36u, 1000u, 0xffffffffu}) {
    EXPECT_THAT(Parse(OneTensor({32}, 0, 128, DType(type))), Refuses("tensor 't'", "type " + std::to_string(type)));
  }
}

TEST(GgufHostile, SaysWhoseTypeFourIs) {
  EXPECT_THAT(Parse(OneTensor({32}, 0, 128, DType(4))), Refuses("tensor 't'", "ollama", "made for llama.cpp"));
}

TEST(GgufHostile, NamesTheFileToTakeInsteadOfOneOfInterleavedRows) {
  EXPECT_THAT(Parse(OneTensor({256}, 0, 144, DType(212))), Refuses("tensor 't'", "Q4_K", "without _R4"));
  EXPECT_THAT(Parse(OneTensor({256}, 0, 144, DType(339))), Refuses("tensor 't'", "IQ4_K", "without _R4"));
}

TEST(GgufHostile, NamesATrellisType) {
  EXPECT_THAT(Parse(OneTensor({256}, 0, 144, DType(154))), Refuses("tensor 't'", "IQ3_KT", "take a file"));
}

TEST(GgufHostile, RefusesRowsThatAreNotWholeBlocks) {
  EXPECT_THAT(Parse(OneTensor({33, 32}, 0, 4096, DType::kQ8_0)), Refuses("tensor 't'", "rows of 33", "Q8_0"));
}

TEST(GgufHostile, RefusesDataThatIsNotAligned) {
  EXPECT_THAT(Parse(OneTensor({4}, 8, 64)), Refuses("tensor 't'", "offset 8", "alignment 32"));
}

TEST(GgufHostile, RefusesDataPastTheEnd) {
  EXPECT_OK(Parse(OneTensor({16}, 0, 64)));
  EXPECT_THAT(Parse(OneTensor({17}, 0, 64)), Refuses("tensor 't'", "truncated"));
  EXPECT_THAT(Parse(OneTensor({16}, 32, 64)), Refuses("tensor 't'", "truncated"));
  EXPECT_THAT(Parse(OneTensor({16}, uint64_t{1} << 62, 64)), Refuses("tensor 't'", "truncated"));
}

TEST(GgufHostile, RefusesOffsetsThatWrapAround) {
  // Added up modulo 2^64 or padded, each of these would come out inside the file.
  for (const uint64_t offset : {~uint64_t{0} - 31, kHuge, kHuge - 32}) {
    EXPECT_THAT(Parse(OneTensor({16}, offset, 64)), Refuses("tensor 't'", "overflow")) << offset;
  }
}

TEST(GgufHostile, RefusesTensorsThatOverlap) {
  GgufBytes bytes;
  bytes.Header(3, 0).Tensor("b", {16}, DType::kF32, 64).Tensor("a", {16}, DType::kF32, 0);
  bytes.Tensor("c", {9}, DType::kF32, 32).PadTo(32).Zeros(256);
  EXPECT_THAT(Parse(bytes), Refuses("tensor 'c'", "overlaps", "'a'"));
}

TEST(GgufHostile, RefusesTensorsWithOneName) {
  GgufBytes bytes;
  bytes.Header(2, 0).Tensor("t", {8}, DType::kF32, 0).Tensor("t", {8}, DType::kF32, 32).PadTo(32).Zeros(64);
  EXPECT_THAT(Parse(bytes), Refuses("tensor 't'", "occurs twice"));
}

TEST(GgufHostile, RefusesTensorNamesThatAreEmptyLongOrHoldANul) {
  for (const std::string& name : {std::string(), std::string(128, 'n'), std::string("a\0b", 3)}) {
    GgufBytes bytes;
    bytes.Header(1, 0).Tensor(name, {8}, DType::kF32, 0).PadTo(32).Zeros(64);
    EXPECT_THAT(Parse(bytes), Refuses("tensor name"));
  }
}

TEST(GgufHostile, TakesNoIndexFromATensorName) {
  GgufBytes bytes;
  bytes.Header(2, 0).Tensor("blk.-1.attn_q.weight", {8}, DType::kF32, 0);
  bytes.Tensor("blk.99999999999999999999.attn_q.weight", {8}, DType::kF32, 32).PadTo(32).Zeros(64);
  EXPECT_OK(Parse(bytes));
}

// ---- files

class GgufFiles : public testing::Test {
 protected:
  GgufFiles() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ferry_gguf_XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~GgufFiles() override { std::filesystem::remove_all(folder_); }

  std::string Path(std::string_view name) const { return (folder_ / name).string(); }
  void Write(std::string_view name, std::span<const std::byte> bytes) const {
    std::ofstream(Path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  // "m-00001-of-00003.gguf" and its two siblings.
  void WriteSplitModel() const {
    ASSERT_OK_AND_ASSIGN(const GgufWriter writer, MakeModelWriter({.layers = 3}));
    ASSERT_OK(writer.WriteFile(Path("m.gguf"), {.num_threads = 1, .num_shards = 3}));
  }

  std::filesystem::path folder_;
};

TEST_F(GgufFiles, SaysWhatToNameInsteadOfALinkToASplitModel) {
  WriteSplitModel();
  std::filesystem::create_symlink("m-00001-of-00003.gguf", Path("link.gguf"));
  EXPECT_THAT(GgufFile::Open(Path("link.gguf")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is a link to one of the 3 files of a split model")));
}

TEST_F(GgufFiles, ASplitModelsCountIsNotOptional) {
  GgufWriter writer;
  writer.SetUint16("split.no", 0);
  ASSERT_OK(writer.WriteFile(Path("part.gguf")));
  EXPECT_THAT(GgufFile::Open(Path("part.gguf")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("key 'split.count' is missing")));
}

TEST_F(GgufFiles, OpensASplitModelByAnyOfItsFiles) {
  WriteSplitModel();
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> whole_bytes, MakeModelBytes({.layers = 3}));
  ASSERT_OK_AND_ASSIGN(const GgufFile whole, GgufFile::Parse(whole_bytes));
  for (const char* name : {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"}) {
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(Path(name)));
    EXPECT_EQ(file.path(), Path("m-00001-of-00003.gguf"));
    EXPECT_EQ(file.num_shards(), 3);
    EXPECT_EQ(*file.GetString("general.architecture"), "gpt-oss");
    ASSERT_EQ(file.tensors().size(), whole.tensors().size());
    EXPECT_EQ(file.tensors().back().shard, 2);
    for (size_t i = 0; i < whole.tensors().size(); ++i) {
      EXPECT_EQ(file.tensors()[i].name, whole.tensors()[i].name);
      EXPECT_TRUE(std::ranges::equal(file.tensors()[i].data, whole.tensors()[i].data)) << whole.tensors()[i].name;
    }
  }
}

TEST_F(GgufFiles, NamesTheMissingFileOfASplitModel) {
  WriteSplitModel();
  std::filesystem::remove(Path("m-00002-of-00003.gguf"));
  EXPECT_THAT(GgufFile::Open(Path("m-00001-of-00003.gguf")),
              StatusIs(StatusCode::kNotFound, AllOf(HasSubstr("file 2 of the 3"), HasSubstr("m-00002-of-00003.gguf"))));
}

TEST_F(GgufFiles, NamesTheTruncatedFileOfASplitModel) {
  WriteSplitModel();
  std::filesystem::resize_file(Path("m-00003-of-00003.gguf"), std::filesystem::file_size(Path("m-00003-of-00003.gguf")) / 2);
  EXPECT_THAT(GgufFile::Open(Path("m-00001-of-00003.gguf")), Refuses("m-00003-of-00003.gguf", "tensor '", "truncated"));
}

TEST_F(GgufFiles, RefusesFilesOfASplitModelInTheWrongPlaces) {
  WriteSplitModel();
  std::filesystem::copy_file(Path("m-00002-of-00003.gguf"), Path("m-00003-of-00003.gguf"),
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(GgufFile::Open(Path("m-00001-of-00003.gguf")), Refuses("m-00003", "key 'split.no'", "is 1, want 2"));
}

TEST_F(GgufFiles, RefusesASplitModelUnderAnotherName) {
  WriteSplitModel();
  std::filesystem::rename(Path("m-00001-of-00003.gguf"), Path("m.gguf"));
  EXPECT_THAT(GgufFile::Open(Path("m.gguf")),
              StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("'split.count' is 3"), HasSubstr("-of-00003.gguf"))));
  std::filesystem::rename(Path("m.gguf"), Path("m-00001-of-00002.gguf"));
  EXPECT_THAT(GgufFile::Open(Path("m-00001-of-00002.gguf")),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("'split.count' is 3")));
}

TEST(GgufSplit, RefusesASplitThatCountsOtherTensorsThanItHolds) {
  const auto shard = [](uint16_t number, std::string_view tensor, int32_t total) {
    GgufBytes bytes;
    bytes.Header(1, 3).Key("split.no", GgufType::kUint16).Add(number);
    bytes.Key("split.count", GgufType::kUint16).Add(uint16_t{2});
    bytes.Key("split.tensors.count", GgufType::kInt32).Add(total);
    bytes.Tensor(tensor, {8}, DType::kF32, 0).PadTo(32).Zeros(32);
    return bytes;
  };
  const auto parse = [](const GgufBytes& first, const GgufBytes& second) {
    const std::span<const std::byte> files[] = {first.bytes(), second.bytes()};
    return GgufFile::ParseSplit(files);
  };
  EXPECT_OK(parse(shard(0, "a", 2), shard(1, "b", 2)));
  EXPECT_THAT(parse(shard(0, "a", 3), shard(1, "b", 3)), Refuses("key 'split.tensors.count' is 3", "hold 2 tensors"));
  EXPECT_THAT(parse(shard(0, "a", 2), shard(1, "a", 2)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tensor 'a' occurs in two files")));
  EXPECT_THAT(parse(shard(0, "a", 2), shard(0, "b", 2)), Refuses("key 'split.no'", "is 0, want 1"));
  EXPECT_THAT(Parse(shard(0, "a", 2)), Refuses("key 'split.count'", "is 2, want 1"));
}

TEST_F(GgufFiles, SaysWhyAFileCannotBeRead) {
  EXPECT_THAT(GgufFile::Open(Path("absent.gguf")), StatusIs(StatusCode::kNotFound, HasSubstr("absent.gguf")));
  EXPECT_THAT(GgufFile::Open(folder_.string()), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not a regular file")));
  Write("empty.gguf", {});
  EXPECT_THAT(GgufFile::Open(Path("empty.gguf")), StatusIs(StatusCode::kInvalidArgument, HasSubstr("is empty")));
}

TEST_F(GgufFiles, GivesMemoryBackAndReadsItAgain) {
  ASSERT_OK(MakeModelFile({}, Path("m.gguf")));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(Path("m.gguf")));
  const TensorInfo& tensor = *file.FindTensor("token_embd.weight");
  const std::vector<std::byte> before(tensor.data.begin(), tensor.data.end());
  file.Release(tensor.data);
  file.Prefetch(tensor.data);
  EXPECT_TRUE(std::ranges::equal(before, tensor.data));
}

TEST(GgufDemo, OpensTheBundledModel) {
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
  EXPECT_EQ(file.tensors().size(), 117u);
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  EXPECT_EQ(tokens.size(), 4096u);
  EXPECT_EQ(tokens[4095], "<|message|>");
}

TEST(GgufDemo, OpensPublishedVocabularies) {
  for (const auto& [name, size] : {std::pair{"gpt-2", 50257u}, std::pair{"deepseek-llm", 102400u}}) {
    const std::string path = SourcePath(absl::StrFormat("../shared/vocab/%s.gguf", name));
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not here";
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(path));
    EXPECT_TRUE(file.tensors().empty());
    EXPECT_EQ(file.GetStrings("tokenizer.ggml.tokens")->size(), size);
  }
}

}  // namespace
}  // namespace ferry
