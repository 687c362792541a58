#pragma once

// Writes GGUF files: GgufBytes field by field and unchecked, GgufWriter whole models, streamed from generators.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Bytes of a GGUF file, appended one field at a time. It checks nothing, so that a test can write any damaged file: a wrong
// length, an unknown type.
class GgufBytes {
 public:
  // A number, little-endian, in the size of its type.
  template <typename T>
  requires(std::is_arithmetic_v<T> || std::is_enum_v<T>) GgufBytes& Add(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
    return *this;
  }
  GgufBytes& Raw(std::string_view text);  // the characters alone
  GgufBytes& Raw(std::span<const std::byte> bytes);
  GgufBytes& String(std::string_view text);  // length, then characters
  GgufBytes& Zeros(size_t count);
  GgufBytes& PadTo(size_t alignment);

  GgufBytes& Header(uint64_t num_tensors, uint64_t num_entries, uint32_t version = 3);
  // Key and type; the value follows by Add or String.
  GgufBytes& Key(std::string_view key, GgufType type);
  GgufBytes& ArrayKey(std::string_view key, GgufType element_type, uint64_t count);
  GgufBytes& Tensor(std::string_view name, std::span<const uint64_t> dims, DType type, uint64_t offset);
  GgufBytes& Tensor(std::string_view name, std::initializer_list<uint64_t> dims, DType type, uint64_t offset) {
    return Tensor(name, std::span(dims.begin(), dims.size()), type, offset);
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  std::vector<std::byte> Take() && { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// The metadata of `file` that `keep` says, and all its tensors' names, shapes and types: what GgufFile::ParseHeader reads.
std::vector<std::byte> GgufHeaderOf(const GgufFile& file, const std::function<bool(std::string_view key)>& keep);

class GgufWriter {
 public:
  // Writes the bytes of a tensor from `offset` on, which is a multiple of a fixed chunk (whole blocks, about 1 MiB,
  // the same for every way of writing). Called from several threads at once, with disjoint parts.
  using Fill = std::function<void(uint64_t offset, std::span<std::byte> out)>;

  struct FileOptions {
    int num_threads = 1;
    int num_shards = 1;  // more than 1: a split model of at most that many files
    bool force = false;  // existing files may be replaced
    // Called now and then, from one thread at a time.
    std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress = nullptr;
  };

  explicit GgufWriter(uint64_t alignment = kGgufDefaultAlignment, uint32_t version = 3);

  // Metadata, written in the order in which keys were first set. A second call for a key replaces its value.
  void SetUint8(std::string_view key, uint8_t value) { SetNumber(key, GgufType::kUint8, value); }
  void SetInt8(std::string_view key, int8_t value) { SetNumber(key, GgufType::kInt8, value); }
  void SetUint16(std::string_view key, uint16_t value) { SetNumber(key, GgufType::kUint16, value); }
  void SetInt16(std::string_view key, int16_t value) { SetNumber(key, GgufType::kInt16, value); }
  void SetUint32(std::string_view key, uint32_t value) { SetNumber(key, GgufType::kUint32, value); }
  void SetInt32(std::string_view key, int32_t value) { SetNumber(key, GgufType::kInt32, value); }
  void SetUint64(std::string_view key, uint64_t value) { SetNumber(key, GgufType::kUint64, value); }
  void SetInt64(std::string_view key, int64_t value) { SetNumber(key, GgufType::kInt64, value); }
  void SetFloat32(std::string_view key, float value) { SetNumber(key, GgufType::kFloat32, value); }
  void SetFloat64(std::string_view key, double value) { SetNumber(key, GgufType::kFloat64, value); }
  void SetBool(std::string_view key, bool value) { SetNumber(key, GgufType::kBool, uint8_t{value}); }
  void SetString(std::string_view key, std::string_view value);
  void SetStrings(std::string_view key, std::span<const std::string> values);
  void SetBools(std::string_view key, const std::vector<bool>& values);
  void SetInt32s(std::string_view key, std::span<const int32_t> values);
  void SetFloat32s(std::string_view key, std::span<const float> values);
  void Remove(std::string_view key);

  // Adds a tensor; dims in ggml's order, fastest first. InvalidArgument: an invalid shape, or data of another size.
  absl::Status AddTensor(std::string_view name, DType dtype, std::vector<int64_t> dims, std::vector<std::byte> data);
  absl::Status AddTensor(std::string_view name, DType dtype, std::vector<int64_t> dims, Fill fill);
  void RemoveTensor(std::string_view name);

  // Size of the whole as one file.
  uint64_t file_bytes() const { return PlanFile("", entries_, tensors_).bytes; }
  // The whole file in memory.
  std::vector<std::byte> ToBytes() const;
  // Writes a temporary file beside `path` and renames it to `path` when complete. With num_shards > 1, `path` is NAME.gguf and
  // the files are NAME-00001-of-0000N.gguf. Uses about 1 MiB of memory a thread. ResourceExhausted: the disk is full.
  // FailedPrecondition: the errors of CheckOutput (common/output_file.h), or the system's.
  absl::Status WriteFile(const std::string& path, const FileOptions& options) const;
  absl::Status WriteFile(const std::string& path) const { return WriteFile(path, FileOptions()); }

 private:
  struct Entry {
    std::string key;
    GgufBytes encoded;  // the key, its type and value
  };
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> dims;
    uint64_t bytes;
    Fill fill;
  };
  // The part of a tensor that one call of its Fill writes, and its place in the file.
  struct Chunk {
    const Tensor* tensor;
    uint64_t offset;
    uint64_t bytes;
    uint64_t file_offset;
  };
  // One file, laid out.
  struct Plan {
    std::string path;
    std::vector<std::byte> header;  // up to the data section, padded
    std::vector<Chunk> chunks;
    uint64_t bytes;
  };

  GgufBytes& EntryOf(std::string_view key);
  template <typename T>
  void SetNumber(std::string_view key, GgufType type, T value) {
    EntryOf(key).Key(key, type).Add(value);
  }
  template <typename T>
  void SetArray(std::string_view key, GgufType element_type, std::span<const T> values);
  Plan PlanFile(std::string path, std::span<const Entry> entries, std::span<const Tensor> tensors) const;
  std::vector<Plan> PlanSplit(const std::string& path, int num_shards) const;

  uint64_t alignment_;
  uint32_t version_;
  std::vector<Entry> entries_;
  std::vector<Tensor> tensors_;
};

}  // namespace ferry
