#include "common/gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <optional>
#include <utility>

#include "common/checked_size.h"
#include "common/gguf/gguf_cursor.h"

namespace ferry {
namespace {

using gguf::Cursor;
using gguf::Load;
using gguf::Printable;

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, as little-endian");

constexpr uint64_t kMaxTensorNameBytes = 127;  // the format says 64; some tools write longer ones
constexpr uint32_t kFirstRepacked = 200;       // ik_llama.cpp adds it to a type's id for rows that are interleaved
constexpr uint32_t kOllamaMxfp4 = 4;           // ggml's Q4_2 once, removed from the format; ollama writes MXFP4 under it
// More keys or tensors than any model has, few enough that their descriptions fit into memory.
constexpr uint64_t kMaxCount = uint64_t{1} << 20;
// The least that an entry or a tensor takes in the file, by which their numbers are bounded before any work.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;               // length, one character, type, one byte
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, one character, count, one dim, type, offset

struct RawTensor {
  TensorInfo info;
  uint64_t info_offset;  // where its description begins
  uint64_t data_offset;  // as stored: from the start of the data section
  uint64_t bytes;
};

// The name of a type whose codes walk a trellis, which Ferry does not decode; else empty.
std::string_view TrellisName(DType type) {
  switch (type) {
    case DType::kIQ1_KT:
      return "IQ1_KT";
    case DType::kIQ2_KT:
      return "IQ2_KT";
    case DType::kIQ3_KT:
      return "IQ3_KT";
    case DType::kIQ4_KT:
      return "IQ4_KT";
    default:
      return {};
  }
}

// A tensor's description, its size computed; where its data lies is not known yet.
absl::StatusOr<RawTensor> ReadTensorInfo(Cursor& cursor) {
  RawTensor tensor{};
  tensor.info_offset = cursor.offset();
  ASSIGN_OR_RETURN(tensor.info.name, cursor.ReadName("tensor name", kMaxTensorNameBytes));
  cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(tensor.info.name)));

  const uint64_t dims_offset = cursor.offset();
  ASSIGN_OR_RETURN(const uint32_t num_dims, cursor.Read<uint32_t>("number of dimensions"));
  if (num_dims < 1 || num_dims > tensor.info.dims.size()) {
    return cursor.ErrorAt(dims_offset, "has %d dimensions, 1 to 4 are allowed", num_dims);
  }
  tensor.info.num_dims = static_cast<int>(num_dims);
  tensor.info.dims.fill(1);
  CheckedSize elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    const uint64_t dim_offset = cursor.offset();
    ASSIGN_OR_RETURN(const uint64_t dim, cursor.Read<uint64_t>("dimension"));
    if (dim == 0) return cursor.ErrorAt(dim_offset, "dimension %d is 0", i);
    elements = elements * dim;
    if (!elements.valid()) return cursor.ErrorAt(dim_offset, "dimension %d is %d: 2^63 or more elements", i, dim);
    tensor.info.dims[i] = static_cast<int64_t>(dim);
  }

  const uint64_t type_offset = cursor.offset();
  ASSIGN_OR_RETURN(const uint32_t type, cursor.Read<uint32_t>("type"));
  tensor.info.dtype = DType(type);
  const std::optional<DTypeInfo> dtype = InfoOf(tensor.info.dtype);
  if (!dtype && type == kOllamaMxfp4) {
    return cursor.ErrorAt(type_offset,
                          "unknown tensor type %d (removed from GGUF); ollama's gpt-oss files use it with a different layout: "
                          "take a GGUF file made for llama.cpp",
                          type);
  }
  if (const std::optional<DTypeInfo> plain = type >= kFirstRepacked ? InfoOf(DType(type - kFirstRepacked)) : std::nullopt) {
    return cursor.ErrorAt(type_offset,
                          "tensor type %d is %s with interleaved rows, a form of ik_llama.cpp's own CPU kernels: take the file "
                          "without _R4 or _R8 in its name",
                          type, plain->name);
  }
  if (const std::string_view trellis = TrellisName(tensor.info.dtype); !trellis.empty()) {
    return cursor.ErrorAt(type_offset, "tensor type %d is ik_llama.cpp's %s, a trellis: take a file of its K or KS types instead",
                          type, trellis);
  }
  if (!dtype) return cursor.ErrorAt(type_offset, "unknown tensor type %d", type);
  if (tensor.info.cols() % dtype->block_elements != 0) {
    return cursor.ErrorAt(dims_offset, "rows of %d elements are not whole blocks of %d, which %s has", tensor.info.cols(),
                          dtype->block_elements, dtype->name);
  }
  const CheckedSize blocks = CheckedSize(elements.value() / dtype->block_elements);
  const CheckedSize rows = CheckedSize(elements.value() / static_cast<uint64_t>(tensor.info.cols()));
  const CheckedSize bytes = blocks * CheckedSize(dtype->block_bytes) + rows * CheckedSize(dtype->row_header_bytes);
  if (!bytes.valid()) return cursor.ErrorAt(dims_offset, "takes 2^63 bytes or more");
  tensor.bytes = bytes.value();
  ASSIGN_OR_RETURN(tensor.data_offset, cursor.Read<uint64_t>("offset"));
  return tensor;
}

// Indices that put the names of `items` in order.
template <typename Items, typename NameOfItem>
std::vector<uint32_t> OrderByName(const Items& items, NameOfItem name) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(items[a]) < name(items[b]); });
  return order;
}

// The item of that name, or nullptr; `order` is from OrderByName.
template <typename Items, typename NameOfItem>
auto FindByName(const Items& items, const std::vector<uint32_t>& order, std::string_view wanted, NameOfItem name)
    -> decltype(items.data()) {
  const auto found = std::lower_bound(order.begin(), order.end(), wanted,
                                      [&](uint32_t id, std::string_view key) { return name(items[id]) < key; });
  if (found == order.end() || name(items[*found]) != wanted) return nullptr;
  return &items[*found];
}

// The later of two items with the same name, or nullptr.
template <typename Items, typename NameOfItem>
auto FindDuplicate(const Items& items, const std::vector<uint32_t>& order, NameOfItem name) -> decltype(items.data()) {
  const auto twin =
      std::adjacent_find(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(items[a]) == name(items[b]); });
  if (twin == order.end()) return nullptr;
  return &items[std::max(*twin, *(twin + 1))];
}

constexpr auto kKeyOf = [](const GgufEntry& entry) { return entry.key; };
constexpr auto kNameOf = [](const TensorInfo& tensor) { return tensor.name; };

// general.alignment, strictly: it decides where every tensor lies.
absl::StatusOr<uint64_t> AlignmentOf(const GgufEntry* entry, Cursor& cursor) {
  if (entry == nullptr) return kGgufDefaultAlignment;
  cursor.set_subject("key 'general.alignment'");
  if (entry->type != GgufType::kUint32) {
    return cursor.ErrorAt(entry->file_offset, "is of type %s, want u32", NameOf(entry->type));
  }
  const uint64_t alignment = Load<uint32_t>(entry->value.data());
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kGgufMaxAlignment) {
    return cursor.ErrorAt(entry->file_offset, "is %d, want a power of two from 8 to %d", alignment, kGgufMaxAlignment);
  }
  return alignment;
}

// Finds the bytes of every tensor of one file and checks that they are aligned, inside it and disjoint.
absl::Status PlaceTensors(std::span<const std::byte> bytes, uint64_t alignment, Cursor& cursor, std::vector<RawTensor>& tensors) {
  const CheckedSize data_start = CheckedSize(cursor.offset()).AlignedUp(alignment);
  CheckedSize file_end = data_start;  // where the last tensor ends
  std::vector<const RawTensor*> order;
  for (RawTensor& tensor : tensors) {
    cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(tensor.info.name)));
    if (tensor.data_offset % alignment != 0) {
      return cursor.ErrorAt(tensor.info_offset, "its data offset %d is not a multiple of the alignment %d", tensor.data_offset,
                            alignment);
    }
    const CheckedSize begin = data_start + tensor.data_offset;
    const CheckedSize end = begin + tensor.bytes;
    if (!end.valid()) {
      return cursor.ErrorAt(tensor.info_offset, "its data offset %d and size %d overflow", tensor.data_offset, tensor.bytes);
    }
    tensor.info.file_offset = begin.value();
    if (end.value() > file_end.value()) file_end = end;
    order.push_back(&tensor);
  }
  for (RawTensor& tensor : tensors) {
    if (tensor.info.file_offset + tensor.bytes <= bytes.size()) {
      tensor.info.data = bytes.subspan(tensor.info.file_offset, tensor.bytes);
      continue;
    }
    cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(tensor.info.name)));
    return cursor.ErrorAt(tensor.info_offset,
                          "lies at bytes %d to %d, but the file has %d bytes of the %d that its tensors need: it is "
                          "truncated, as by an interrupted download, or damaged",
                          tensor.info.file_offset, tensor.info.file_offset + tensor.bytes, bytes.size(), file_end.value());
  }
  std::sort(order.begin(), order.end(),
            [](const RawTensor* a, const RawTensor* b) { return a->info.file_offset < b->info.file_offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const RawTensor& before = *order[i - 1];
    const RawTensor& tensor = *order[i];
    if (before.info.file_offset + before.bytes <= tensor.info.file_offset) continue;
    cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(tensor.info.name)));
    return cursor.ErrorAt(tensor.info_offset, "its data at byte %d overlaps that of tensor '%s' at bytes %d to %d",
                          tensor.info.file_offset, Printable(before.info.name), before.info.file_offset,
                          before.info.file_offset + before.bytes);
  }
  return absl::OkStatus();
}

// NAME-00002-of-00003.gguf taken apart.
struct SplitName {
  std::string prefix;  // "NAME-"
  int64_t number;      // from 1
  int64_t count;
};
std::optional<SplitName> ParseSplitName(std::string_view path) {
  constexpr std::string_view kEnd = ".gguf", kOf = "-of-";
  constexpr size_t kDigits = 5, kTail = kDigits + kOf.size() + kDigits + kEnd.size();
  if (path.size() <= kTail || path[path.size() - kTail - 1] != '-' || !path.ends_with(kEnd)) return std::nullopt;
  const std::string_view tail = path.substr(path.size() - kTail);
  if (tail.substr(kDigits, kOf.size()) != kOf) return std::nullopt;
  int64_t numbers[2] = {0, 0};
  for (int which = 0; which < 2; ++which) {
    for (const char digit : tail.substr(which * (kDigits + kOf.size()), kDigits)) {
      if (digit < '0' || digit > '9') return std::nullopt;
      numbers[which] = numbers[which] * 10 + (digit - '0');
    }
  }
  return SplitName{std::string(path.substr(0, path.size() - kTail)), numbers[0], numbers[1]};
}

}  // namespace

std::string DimsToString(const TensorInfo& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.num_dims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.dims[i]);
  return text + "]";
}

absl::StatusOr<GgufFile> GgufFile::ParseShard(std::span<const std::byte> bytes, std::string path, bool header_only) {
  GgufFile file;
  file.path_ = std::move(path);
  file.file_bytes_ = bytes.size();
  Cursor cursor(bytes, file.path_);

  ASSIGN_OR_RETURN(const std::span<const std::byte> magic, cursor.ReadBytes(4, "magic"));
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
    return cursor.ErrorAt(0, "not a GGUF file: it begins with '%s'",
                          Printable({reinterpret_cast<const char*>(magic.data()), magic.size()}));
  }
  ASSIGN_OR_RETURN(file.version_, cursor.Read<uint32_t>("version"));
  if (file.version_ != 0 && (file.version_ & 0xffff) == 0) {
    return cursor.ErrorAt(4, "the file is big-endian; convert it to little-endian");
  }
  if (file.version_ != 2 && file.version_ != 3) {
    return cursor.ErrorAt(4, "GGUF version %d is not supported, want 2 or 3", file.version_);
  }
  ASSIGN_OR_RETURN(const uint64_t num_tensors, cursor.Read<uint64_t>("number of tensors"));
  ASSIGN_OR_RETURN(const uint64_t num_entries, cursor.Read<uint64_t>("number of keys"));
  const CheckedSize least = CheckedSize(num_tensors) * kMinTensorInfoBytes + CheckedSize(num_entries) * kMinEntryBytes;
  if (num_tensors > kMaxCount || num_entries > kMaxCount) {
    return cursor.ErrorAt(8, "has %d tensors and %d keys, at most %d of each are allowed", num_tensors, num_entries, kMaxCount);
  }
  if (!least.AtMost(cursor.bytes_left())) {
    return cursor.ErrorAt(8, "has %d tensors and %d keys, which do not fit into the %d bytes left", num_tensors, num_entries,
                          cursor.bytes_left());
  }

  for (uint64_t i = 0; i < num_entries; ++i) {
    cursor.set_subject(absl::StrFormat("key %d of %d", i + 1, num_entries));
    ASSIGN_OR_RETURN(const GgufEntry entry, cursor.ReadEntry());
    file.entries_.push_back(entry);
  }
  file.entries_by_key_ = OrderByName(file.entries_, kKeyOf);
  if (const GgufEntry* twin = FindDuplicate(file.entries_, file.entries_by_key_, kKeyOf)) {
    cursor.set_subject(absl::StrFormat("key '%s'", Printable(twin->key)));
    return cursor.ErrorAt(twin->file_offset, "occurs twice");
  }
  ASSIGN_OR_RETURN(const uint64_t alignment, AlignmentOf(file.FindEntry("general.alignment"), cursor));

  std::vector<RawTensor> tensors;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    cursor.set_subject(absl::StrFormat("tensor %d of %d", i + 1, num_tensors));
    ASSIGN_OR_RETURN(const RawTensor tensor, ReadTensorInfo(cursor));
    tensors.push_back(tensor);
  }
  if (!header_only) RETURN_IF_ERROR(PlaceTensors(bytes, alignment, cursor, tensors));
  for (const RawTensor& tensor : tensors) file.tensors_.push_back(tensor.info);
  file.tensors_by_name_ = OrderByName(file.tensors_, kNameOf);
  if (const TensorInfo* twin = FindDuplicate(file.tensors_, file.tensors_by_name_, kNameOf)) {
    cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(twin->name)));
    return cursor.ErrorAt(tensors[twin - file.tensors_.data()].info_offset, "occurs twice");
  }
  return file;
}

absl::StatusOr<GgufFile> GgufFile::Join(std::vector<GgufFile> shards) {
  const int64_t count = static_cast<int64_t>(shards.size());
  const auto annotate = [&](int64_t i) { return absl::StrFormat("file %d of the split model", i + 1); };
  for (int64_t i = 0; i < count; ++i) {
    GgufFile& shard = shards[i];
    // The number is checked against the place in which the file was found, so that renamed files are noticed.
    for (const auto& [key, want] : {std::pair{"split.count", count}, std::pair{"split.no", i}}) {
      if (const auto value = shard.GetInt(key, want, want); !value.ok()) return Annotate(value.status(), annotate(i));
    }
    const GgufEntry* const architecture = shard.FindEntry("general.architecture");
    const GgufEntry* const first = shards[0].FindEntry("general.architecture");
    if (i > 0 && architecture != nullptr && (first == nullptr || ValueToString(*architecture) != ValueToString(*first))) {
      return InvalidArgument("%s: key 'general.architecture' is another one than in the first file (at byte %d)", shard.path_,
                             architecture->file_offset);
    }
  }
  GgufFile file = std::move(shards[0]);
  file.num_shards_ = static_cast<int>(count);
  for (int64_t i = 1; i < count; ++i) {
    GgufFile& shard = shards[i];
    file.file_bytes_ += shard.file_bytes_;
    for (TensorInfo& tensor : shard.tensors_) {
      tensor.shard = static_cast<int>(i);
      file.tensors_.push_back(tensor);
    }
    for (MappedFile& mapping : shard.mappings_) file.mappings_.push_back(std::move(mapping));
  }
  file.tensors_by_name_ = OrderByName(file.tensors_, kNameOf);
  if (const TensorInfo* twin = FindDuplicate(file.tensors_, file.tensors_by_name_, kNameOf)) {
    return InvalidArgument("%s: tensor '%s' occurs in two files of the split model (again in file %d at byte %d)", file.path_,
                           Printable(twin->name), twin->shard + 1, twin->file_offset);
  }
  const int64_t num_tensors = static_cast<int64_t>(file.tensors_.size());
  ASSIGN_OR_RETURN(const int64_t want, file.GetInt("split.tensors.count"));
  if (num_tensors != want) {
    return InvalidArgument("%s: key 'split.tensors.count' is %d, but the %d files hold %d tensors (at byte %d)", file.path_, want,
                           count, num_tensors, file.FindEntry("split.tensors.count")->file_offset);
  }
  return file;
}

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  const auto open_shard = [](const std::string& shard_path) -> absl::StatusOr<GgufFile> {
    ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(shard_path));
    ASSIGN_OR_RETURN(GgufFile shard, ParseShard(mapping.bytes(), shard_path));
    shard.mappings_.push_back(std::move(mapping));
    return shard;
  };
  ASSIGN_OR_RETURN(GgufFile file, open_shard(path));
  ASSIGN_OR_RETURN(const int64_t count, file.GetIntOr("split.count", 1, 1, 99999));
  for (const char* const sibling : {"split.no", "split.tensors.count"}) {
    if (!file.Has("split.count") && file.Has(sibling)) {
      return InvalidArgument("%s: key 'split.count' is missing, though '%s' is there", path, sibling);
    }
  }
  const std::optional<SplitName> name = ParseSplitName(path);
  if (count == 1 && (!name || name->count == 1)) return file;
  if (!name || name->count != count) {
    std::error_code not_a_link;
    const std::string target = std::filesystem::read_symlink(path, not_a_link).string();
    if (!not_a_link) {
      return InvalidArgument(
          "%s is a link to one of the %d files of a split model, whose names say where the others are: name %s", path, count,
          target);
    }
    return InvalidArgument("%s: key 'split.count' is %d, but the file is not named NAME-00001-of-%05d.gguf", path, count, count);
  }
  std::vector<GgufFile> shards;
  for (int64_t number = 1; number <= count; ++number) {
    const std::string shard_path = absl::StrFormat("%s%05d-of-%05d.gguf", name->prefix, number, count);
    absl::StatusOr<GgufFile> shard = open_shard(shard_path);
    if (!shard.ok()) {
      return Annotate(shard.status(), absl::StrFormat("file %d of the %d files of this model", number, count));
    }
    shards.push_back(*std::move(shard));
  }
  return Join(std::move(shards));
}

absl::StatusOr<GgufFile> GgufFile::Parse(std::span<const std::byte> bytes) { return ParseSplit({&bytes, 1}); }

absl::StatusOr<GgufFile> GgufFile::ParseHeader(std::span<const std::byte> bytes, std::string name) {
  return ParseShard(bytes, std::move(name), /*header_only=*/true);
}

absl::StatusOr<GgufFile> GgufFile::ParseSplit(std::span<const std::span<const std::byte>> files) {
  if (files.empty()) return InvalidArgument("gguf: the model has no files");
  std::vector<GgufFile> shards;
  for (size_t i = 0; i < files.size(); ++i) {
    ASSIGN_OR_RETURN(GgufFile shard, ParseShard(files[i], files.size() == 1 ? "gguf" : absl::StrFormat("gguf[%d]", i)));
    shards.push_back(std::move(shard));
  }
  ASSIGN_OR_RETURN(const int64_t count, shards[0].GetIntOr("split.count", 1, 1, 99999));
  if (count == 1 && shards.size() == 1) return std::move(shards[0]);
  return Join(std::move(shards));
}

const GgufEntry* GgufFile::FindEntry(std::string_view key) const { return FindByName(entries_, entries_by_key_, key, kKeyOf); }

const TensorInfo* GgufFile::FindTensor(std::string_view name) const {
  return FindByName(tensors_, tensors_by_name_, name, kNameOf);
}

std::vector<std::string> GgufFile::paths() const {
  std::vector<std::string> paths;
  for (const MappedFile& mapping : mappings_) paths.push_back(mapping.path());
  return paths;
}

absl::Status GgufFile::CheckUnchanged() const {
  for (const MappedFile& mapping : mappings_) RETURN_IF_ERROR(mapping.CheckUnchanged());
  return absl::OkStatus();
}

void GgufFile::Prefetch(std::span<const std::byte> part) const {
  for (const MappedFile& mapping : mappings_) {
    if (mapping.Contains(part)) mapping.Prefetch(part);
  }
}

void GgufFile::Release(std::span<const std::byte> part) const {
  for (const MappedFile& mapping : mappings_) {
    if (mapping.Contains(part)) mapping.Release(part);
  }
}

}  // namespace ferry
