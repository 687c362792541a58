#pragma once

// Reads GGUF model files (versions 2 and 3, little-endian, one file or split), memory-mapped.
//
// A GGUF file is untrusted input. Open checks all of it: a GgufFile has only known types, unique keys and tensor names, and
// tensors whose bytes lie inside the file, aligned and disjoint. Open refuses any other file with InvalidArgument, which names
// the key or tensor and the file offset. It compares a count with the bytes left in the file before it allocates memory for it.
//
// All string_views and spans borrow from the mapping. They are valid while the GgufFile lives, or the GgufFile that it was moved
// to. Const methods are thread-safe.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/mapped_file.h"
#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Metadata value types by their ids in the format.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};
// "u32", "string", ...; "unknown" for an id that is not one of the format.
std::string_view NameOf(GgufType type);

inline constexpr uint64_t kGgufDefaultAlignment = 32;
inline constexpr uint64_t kGgufMaxAlignment = 65536;

// One metadata entry. `value` is still encoded: the bytes after the type, or for an array its elements.
struct GgufEntry {
  std::string_view key;
  GgufType type;
  GgufType element_type;  // of an array; otherwise equal to type
  uint64_t count;         // elements of an array; otherwise 1
  uint64_t file_offset;   // of value
  std::span<const std::byte> value;
};

struct TensorInfo {
  std::string_view name;
  DType dtype;
  std::array<int64_t, 4> dims;  // in ggml's order, dims[0] varies fastest; ones beyond num_dims
  int num_dims;
  int shard;             // which file of a split model, from 0
  uint64_t file_offset;  // of the first byte, in that file
  std::span<const std::byte> data;

  // The tensor as a matrix of rows x cols elements, row-major: all dimensions but the first one count rows.
  int64_t cols() const { return dims[0]; }
  int64_t rows() const { return dims[1] * dims[2] * dims[3]; }
  uint64_t bytes() const { return data.size(); }
  uint64_t row_bytes() const { return data.size() / static_cast<uint64_t>(rows()); }
};
// "[256, 192, 32]": dims as GGUF tools print them, fastest first.
std::string DimsToString(const TensorInfo& tensor);

class GgufFile {
 public:
  // Opens a model. `path` may be any file of a split model (NAME-00001-of-0000N.gguf), whose files lie in one folder.
  // InvalidArgument: the file is damaged or truncated, or the files of a split model do not belong together.
  // NotFound, PermissionDenied, ...: a file cannot be read.
  static absl::StatusOr<GgufFile> Open(const std::string& path);
  // The same for bytes in memory, which stay with the caller and outlive the result. One span per file of the model.
  static absl::StatusOr<GgufFile> Parse(std::span<const std::byte> bytes);
  static absl::StatusOr<GgufFile> ParseSplit(std::span<const std::span<const std::byte>> files);
  // What comes before the data: metadata, names, shapes and types of tensors, which have no data then. For a model's description
  // without its numbers, as GgufHeaderOf makes it (gguf_writer.h). Named `name` in errors.
  static absl::StatusOr<GgufFile> ParseHeader(std::span<const std::byte> bytes, std::string name);

  GgufFile(GgufFile&&) = default;
  GgufFile& operator=(GgufFile&&) = default;

  uint32_t version() const { return version_; }
  // The path it was opened by, the first file's for a split model; "gguf" when parsed from memory.
  const std::string& path() const { return path_; }
  int num_shards() const { return num_shards_; }
  uint64_t file_bytes() const { return file_bytes_; }  // of all shards

  // The paths of all opened files; empty when parsed from memory.
  std::vector<std::string> paths() const;
  // Returns the errors of MappedFile::CheckUnchanged for every file. Call it between reading data and using it: every access to
  // tensors and metadata reads the files.
  absl::Status CheckUnchanged() const;

  // Metadata in file order; for a split model, that of the first file.
  const std::vector<GgufEntry>& entries() const { return entries_; }
  const GgufEntry* FindEntry(std::string_view key) const;
  bool Has(std::string_view key) const { return FindEntry(key) != nullptr; }

  // The value of `key`. InvalidArgument names the key and says whether it is missing, of another type (and which), or
  // outside [min, max]. Integers may be stored in any integer type, floats as f32 or f64; nothing else is converted.
  absl::StatusOr<int64_t> GetInt(std::string_view key, int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
  absl::StatusOr<double> GetFloat(std::string_view key, double min, double max) const;  // NaN is outside any range
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetInts(std::string_view key, int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
  absl::StatusOr<std::vector<double>> GetFloats(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> GetStrings(std::string_view key) const;
  // The same, except that a missing key gives `absent`.
  absl::StatusOr<int64_t> GetIntOr(std::string_view key, int64_t absent, int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
  absl::StatusOr<double> GetFloatOr(std::string_view key, double absent, double min, double max) const;
  absl::StatusOr<bool> GetBoolOr(std::string_view key, bool absent) const;
  absl::StatusOr<std::string_view> GetStringOr(std::string_view key, std::string_view absent) const;

  // The value for display: "4096", "yarn", "[!, \", #, ... 4096 in all]". Escapes unprintable bytes.
  static std::string ValueToString(const GgufEntry& entry, size_t max_elements = 3, size_t max_chars = 60);

  // Tensors in file order, shard after shard.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* FindTensor(std::string_view name) const;

  // Hints for a file that was opened by path; no effect otherwise. Prefetch reads `part` of a tensor ahead. Release drops the
  // pages that lie wholly in `part`, so that a loader's resident memory does not grow with the file.
  void Prefetch(std::span<const std::byte> part) const;
  void Release(std::span<const std::byte> part) const;

 private:
  GgufFile() = default;
  // One file of a model on its own; split.* keys are not looked at.
  static absl::StatusOr<GgufFile> ParseShard(std::span<const std::byte> bytes, std::string path, bool header_only = false);
  // Puts the files of a split model together.
  static absl::StatusOr<GgufFile> Join(std::vector<GgufFile> shards);

  std::string path_;
  uint32_t version_ = 0;
  int num_shards_ = 1;
  uint64_t file_bytes_ = 0;
  std::vector<GgufEntry> entries_;
  std::vector<uint32_t> entries_by_key_;  // indices into entries_
  std::vector<TensorInfo> tensors_;
  std::vector<uint32_t> tensors_by_name_;  // indices into tensors_
  std::vector<MappedFile> mappings_;       // empty when parsed from memory
};

}  // namespace ferry
