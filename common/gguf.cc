#include "common/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "common/checked_size.h"

namespace ferry {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, as little-endian");

constexpr uint64_t kMaxKeyBytes = 65535;      // the format's own limit
constexpr uint64_t kMaxTensorNameBytes = 127;  // the format says 64; some tools write longer ones
constexpr uint32_t kOllamaMxfp4 = 4;  // ggml's Q4_2 once, removed from the format; ollama writes MXFP4 under it
// More keys or tensors than any model has, few enough that their descriptions fit into memory.
constexpr uint64_t kMaxCount = uint64_t{1} << 20;
// The least that an entry or a tensor takes in the file, by which their numbers are bounded before any work.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;            // length, one character, type, one byte
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, one character, count, one dim, type, offset

// Encoded size of one value, 0 for those that say it themselves, nullopt for ids that are not of the format.
std::optional<uint64_t> FixedSizeOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8: case GgufType::kInt8: case GgufType::kBool: return 1;
    case GgufType::kUint16: case GgufType::kInt16: return 2;
    case GgufType::kUint32: case GgufType::kInt32: case GgufType::kFloat32: return 4;
    case GgufType::kUint64: case GgufType::kInt64: case GgufType::kFloat64: return 8;
    case GgufType::kString: case GgufType::kArray: return 0;
  }
  return std::nullopt;
}

// Length of the UTF-8 character that `text` begins with; 0 when it is a control character or not UTF-8.
size_t CharacterBytes(std::string_view text) {
  const unsigned char first = text[0];
  if (first < 0x80) return first >= 0x20 && first != 0x7f;
  const size_t size = first >= 0xf8 ? 0 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return size;
}

// Text from a file, fit for a terminal and for a UTF-8 message: what is not is written as \xNN, and the end is cut.
std::string Printable(std::string_view text, size_t max_bytes = 80) {
  std::string printable;
  while (!text.empty()) {
    if (printable.size() >= max_bytes) return printable + "...";
    const size_t size = CharacterBytes(text);
    if (size == 0) {
      printable += absl::StrFormat("\\x%02x", static_cast<unsigned char>(text[0]));
    } else {
      printable += text.substr(0, size);
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return printable;
}

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Walks a file front to back. Every read is checked against the bytes left; errors say what was being read and where.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string_view path) : bytes_(bytes), path_(path) {}

  // What the following reads are part of, such as "key 'general.name'".
  void set_subject(std::string subject) { subject_ = std::move(subject); }
  uint64_t offset() const { return offset_; }
  uint64_t bytes_left() const { return bytes_.size() - offset_; }

  template <typename... Args>
  absl::Status ErrorAt(uint64_t offset, const absl::FormatSpec<Args...>& format, const Args&... args) const {
    return InvalidArgument("%s: %s: %s (at byte %d)", path_, subject_, absl::StrFormat(format, args...), offset);
  }

  absl::StatusOr<std::span<const std::byte>> ReadBytes(CheckedSize size, std::string_view what) {
    if (!size.AtMost(bytes_left())) {
      return ErrorAt(offset_, "%s takes %s bytes, but %d of the file's %d bytes are left: it is truncated, as by an "
                     "interrupted download, or damaged", what,
                     size.valid() ? std::to_string(size.value()) : std::string("2^63 or more"), bytes_left(),
                     bytes_.size());
    }
    const std::span<const std::byte> part = bytes_.subspan(offset_, size.value());
    offset_ += part.size();
    return part;
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view what) {
    ASSIGN_OR_RETURN(const std::span<const std::byte> part, ReadBytes(sizeof(T), what));
    return Load<T>(part.data());
  }

  absl::StatusOr<std::string_view> ReadString(std::string_view what) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    ASSIGN_OR_RETURN(const std::span<const std::byte> part, ReadBytes(size, what));
    return std::string_view(reinterpret_cast<const char*>(part.data()), part.size());
  }

  // A key or a tensor name: 1 to max_bytes bytes, none of them NUL.
  absl::StatusOr<std::string_view> ReadName(std::string_view what, uint64_t max_bytes) {
    const uint64_t start = offset_;
    ASSIGN_OR_RETURN(const std::string_view name, ReadString(what));
    if (name.empty()) return ErrorAt(start, "%s is empty", what);
    if (name.size() > max_bytes) {
      return ErrorAt(start, "%s has %d bytes, at most %d are allowed", what, name.size(), max_bytes);
    }
    if (name.find('\0') != name.npos) return ErrorAt(start, "%s '%s' contains a NUL byte", what, Printable(name));
    return name;
  }

  // A metadata entry from its key on.
  absl::StatusOr<GgufEntry> ReadEntry();

 private:
  // Passes over `count` values of `type`, which lie at the cursor.
  absl::Status SkipValues(GgufType type, uint64_t count);

  std::span<const std::byte> bytes_;
  std::string_view path_;
  std::string subject_ = "header";
  uint64_t offset_ = 0;
};

absl::Status Cursor::SkipValues(GgufType type, uint64_t count) {
  if (type == GgufType::kString) {
    if (count > bytes_left() / sizeof(uint64_t)) {
      return ErrorAt(offset_, "%d strings do not fit into the %d bytes left", count, bytes_left());
    }
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN([[maybe_unused]] const std::string_view text, ReadString("string"));
    }
    return absl::OkStatus();
  }
  const uint64_t start = offset_;
  ASSIGN_OR_RETURN(const std::span<const std::byte> values,
                   ReadBytes(CheckedSize(count) * CheckedSize(*FixedSizeOf(type)), "value"));
  if (type == GgufType::kBool) {
    const auto other = std::find_if(values.begin(), values.end(), [](std::byte b) { return b > std::byte{1}; });
    if (other != values.end()) return ErrorAt(start, "a bool is %d, not 0 or 1", static_cast<int>(*other));
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufEntry> Cursor::ReadEntry() {
  GgufEntry entry{};
  ASSIGN_OR_RETURN(entry.key, ReadName("key", kMaxKeyBytes));
  set_subject(absl::StrFormat("key '%s'", Printable(entry.key)));
  const uint64_t type_offset = offset_;
  ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>("type"));
  entry.type = entry.element_type = GgufType(type);
  entry.count = 1;
  if (!FixedSizeOf(entry.type)) return ErrorAt(type_offset, "unknown value type %d", type);
  if (entry.type == GgufType::kArray) {
    const uint64_t element_offset = offset_;
    ASSIGN_OR_RETURN(const uint32_t element_type, Read<uint32_t>("element type"));
    entry.element_type = GgufType(element_type);
    if (!FixedSizeOf(entry.element_type)) return ErrorAt(element_offset, "unknown element type %d", element_type);
    if (entry.element_type == GgufType::kArray) return ErrorAt(element_offset, "arrays of arrays are not supported");
    ASSIGN_OR_RETURN(entry.count, Read<uint64_t>("array length"));
  }
  entry.file_offset = offset_;
  RETURN_IF_ERROR(SkipValues(entry.element_type, entry.count));
  entry.value = bytes_.subspan(entry.file_offset, offset_ - entry.file_offset);
  return entry;
}

struct RawTensor {
  TensorInfo info;
  uint64_t info_offset;  // where its description begins
  uint64_t data_offset;  // as stored: from the start of the data section
  uint64_t bytes;
};

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
    return cursor.ErrorAt(type_offset, "tensor type %d is no type any more; ollama's own gpt-oss files have it, in another layout than "
                          "Ferry runs: take a file made for llama.cpp", type);
  }
  if (!dtype) return cursor.ErrorAt(type_offset, "unknown tensor type %d", type);
  if (tensor.info.cols() % dtype->block_elements != 0) {
    return cursor.ErrorAt(dims_offset, "rows of %d elements are not whole blocks of %d, which %s has",
                          tensor.info.cols(), dtype->block_elements, dtype->name);
  }
  const CheckedSize bytes = CheckedSize(elements.value() / dtype->block_elements) * CheckedSize(dtype->block_bytes);
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
  const auto twin = std::adjacent_find(order.begin(), order.end(),
                                       [&](uint32_t a, uint32_t b) { return name(items[a]) == name(items[b]); });
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
absl::Status PlaceTensors(std::span<const std::byte> bytes, uint64_t alignment, Cursor& cursor,
                          std::vector<RawTensor>& tensors) {
  const CheckedSize data_start = CheckedSize(cursor.offset()).AlignedUp(alignment);
  CheckedSize file_end = data_start;  // where the last tensor ends
  std::vector<const RawTensor*> order;
  for (RawTensor& tensor : tensors) {
    cursor.set_subject(absl::StrFormat("tensor '%s'", Printable(tensor.info.name)));
    if (tensor.data_offset % alignment != 0) {
      return cursor.ErrorAt(tensor.info_offset, "its data offset %d is not a multiple of the alignment %d",
                            tensor.data_offset, alignment);
    }
    const CheckedSize begin = data_start + tensor.data_offset;
    const CheckedSize end = begin + tensor.bytes;
    if (!end.valid()) {
      return cursor.ErrorAt(tensor.info_offset, "its data offset %d and size %d overflow", tensor.data_offset,
                            tensor.bytes);
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
                          tensor.info.file_offset, tensor.info.file_offset + tensor.bytes, bytes.size(),
                          file_end.value());
  }
  std::sort(order.begin(), order.end(), [](const RawTensor* a, const RawTensor* b) {
    return a->info.file_offset < b->info.file_offset;
  });
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

std::string TypeToString(const GgufEntry& entry) {
  if (entry.type != GgufType::kArray) return std::string(NameOf(entry.type));
  return absl::StrFormat("array of %s", NameOf(entry.element_type));
}

// Calls visit(value) with the C++ value at `from`; false for strings and arrays.
template <typename Visit>
bool VisitNumber(GgufType type, const std::byte* from, Visit visit) {
  switch (type) {
    case GgufType::kUint8: visit(Load<uint8_t>(from)); return true;
    case GgufType::kInt8: visit(Load<int8_t>(from)); return true;
    case GgufType::kUint16: visit(Load<uint16_t>(from)); return true;
    case GgufType::kInt16: visit(Load<int16_t>(from)); return true;
    case GgufType::kUint32: visit(Load<uint32_t>(from)); return true;
    case GgufType::kInt32: visit(Load<int32_t>(from)); return true;
    case GgufType::kUint64: visit(Load<uint64_t>(from)); return true;
    case GgufType::kInt64: visit(Load<int64_t>(from)); return true;
    case GgufType::kFloat32: visit(Load<float>(from)); return true;
    case GgufType::kFloat64: visit(Load<double>(from)); return true;
    case GgufType::kBool: visit(Load<uint8_t>(from) != 0); return true;
    case GgufType::kString: case GgufType::kArray: return false;
  }
  return false;
}

bool IsInteger(GgufType type) {
  switch (type) {
    case GgufType::kUint8: case GgufType::kInt8: case GgufType::kUint16: case GgufType::kInt16:
    case GgufType::kUint32: case GgufType::kInt32: case GgufType::kUint64: case GgufType::kInt64: return true;
    default: return false;
  }
}
bool IsFloat(GgufType type) { return type == GgufType::kFloat32 || type == GgufType::kFloat64; }

// An integer of any width as int64; nullopt above 2^63 - 1.
std::optional<int64_t> LoadInt(GgufType type, const std::byte* from) {
  std::optional<int64_t> result;
  VisitNumber(type, from, [&](auto value) {
    if constexpr (std::is_same_v<decltype(value), uint64_t>) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return;
    }
    result = static_cast<int64_t>(value);
  });
  return result;
}

double LoadFloat(GgufType type, const std::byte* from) {
  return type == GgufType::kFloat32 ? static_cast<double>(Load<float>(from)) : Load<double>(from);
}

// Strings laid end to end; their lengths were checked when the file was opened.
template <typename Visit>
void VisitStrings(const GgufEntry& entry, uint64_t max_count, Visit visit) {
  const std::byte* from = entry.value.data();
  for (uint64_t i = 0; i < std::min(entry.count, max_count); ++i) {
    const uint64_t size = Load<uint64_t>(from);
    visit(std::string_view(reinterpret_cast<const char*>(from + sizeof(uint64_t)), size));
    from += sizeof(uint64_t) + size;
  }
}

absl::Status MissingKey(const GgufFile& file, std::string_view key) {
  return InvalidArgument("%s: key '%s' is missing", file.path(), key);
}
absl::Status WrongType(const GgufFile& file, const GgufEntry& entry, std::string_view want) {
  return InvalidArgument("%s: key '%s' is of type %s, want %s (at byte %d)", file.path(), Printable(entry.key),
                         TypeToString(entry), want, entry.file_offset);
}

absl::StatusOr<int64_t> CheckedInt(const GgufFile& file, const GgufEntry& entry, GgufType type, const std::byte* from,
                                   int64_t min, int64_t max) {
  const std::optional<int64_t> value = LoadInt(type, from);
  if (value && *value >= min && *value <= max) return *value;
  const std::string found = value ? std::to_string(*value) : std::to_string(Load<uint64_t>(from));
  return InvalidArgument("%s: key '%s' is %s, want %d to %d (at byte %d)", file.path(), Printable(entry.key), found,
                         min, max, entry.file_offset + (from - entry.value.data()));
}

// The entry, present and of the wanted kind: a scalar or an array whose (element) type passes `accepts`.
template <typename Accepts>
absl::StatusOr<const GgufEntry*> EntryOf(const GgufFile& file, std::string_view key, bool array, Accepts accepts,
                                         std::string_view want) {
  const GgufEntry* const entry = file.FindEntry(key);
  if (entry == nullptr) return MissingKey(file, key);
  if ((entry->type == GgufType::kArray) != array || !accepts(entry->element_type)) return WrongType(file, *entry, want);
  return entry;
}

}  // namespace

std::string_view NameOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8: return "u8";
    case GgufType::kInt8: return "i8";
    case GgufType::kUint16: return "u16";
    case GgufType::kInt16: return "i16";
    case GgufType::kUint32: return "u32";
    case GgufType::kInt32: return "i32";
    case GgufType::kFloat32: return "f32";
    case GgufType::kBool: return "bool";
    case GgufType::kString: return "string";
    case GgufType::kArray: return "array";
    case GgufType::kUint64: return "u64";
    case GgufType::kInt64: return "i64";
    case GgufType::kFloat64: return "f64";
  }
  return "unknown";
}

std::string DimsToString(const TensorInfo& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.num_dims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.dims[i]);
  return text + "]";
}

absl::StatusOr<GgufFile> GgufFile::ParseShard(std::span<const std::byte> bytes, std::string path) {
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
    return cursor.ErrorAt(4, "a big-endian file; convert it to little-endian");
  }
  if (file.version_ != 2 && file.version_ != 3) {
    return cursor.ErrorAt(4, "GGUF version %d is not supported, want 2 or 3", file.version_);
  }
  ASSIGN_OR_RETURN(const uint64_t num_tensors, cursor.Read<uint64_t>("number of tensors"));
  ASSIGN_OR_RETURN(const uint64_t num_entries, cursor.Read<uint64_t>("number of keys"));
  const CheckedSize least = CheckedSize(num_tensors) * kMinTensorInfoBytes + CheckedSize(num_entries) * kMinEntryBytes;
  if (num_tensors > kMaxCount || num_entries > kMaxCount) {
    return cursor.ErrorAt(8, "%d tensors and %d keys: more than %d are refused", num_tensors, num_entries, kMaxCount);
  }
  if (!least.AtMost(cursor.bytes_left())) {
    return cursor.ErrorAt(8, "%d tensors and %d keys do not fit into the %d bytes left", num_tensors, num_entries,
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
  RETURN_IF_ERROR(PlaceTensors(bytes, alignment, cursor, tensors));
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
    if (i > 0 && architecture != nullptr &&
        (first == nullptr || ValueToString(*architecture) != ValueToString(*first))) {
      return InvalidArgument("%s: key 'general.architecture' is another one than in the first file (at byte %d)",
                             shard.path_, architecture->file_offset);
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
    return InvalidArgument("%s: tensor '%s' occurs in two files of the split model (again in file %d at byte %d)",
                           file.path_, Printable(twin->name), twin->shard + 1, twin->file_offset);
  }
  const int64_t num_tensors = static_cast<int64_t>(file.tensors_.size());
  ASSIGN_OR_RETURN(const int64_t want, file.GetInt("split.tensors.count"));
  if (num_tensors != want) {
    return InvalidArgument("%s: key 'split.tensors.count' is %d, but the %d files hold %d tensors (at byte %d)",
                           file.path_, want, count, num_tensors, file.FindEntry("split.tensors.count")->file_offset);
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
  const std::optional<SplitName> name = ParseSplitName(path);
  if (count == 1 && (!name || name->count == 1)) return file;
  if (!name || name->count != count) {
    return InvalidArgument("%s: key 'split.count' is %d, but the file is not named NAME-00001-of-%05d.gguf", path,
                           count, count);
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

absl::StatusOr<GgufFile> GgufFile::Parse(std::span<const std::byte> bytes) {
  return ParseSplit({&bytes, 1});
}

absl::StatusOr<GgufFile> GgufFile::ParseSplit(std::span<const std::span<const std::byte>> files) {
  if (files.empty()) return InvalidArgument("gguf: a model of no files");
  std::vector<GgufFile> shards;
  for (size_t i = 0; i < files.size(); ++i) {
    ASSIGN_OR_RETURN(GgufFile shard, ParseShard(files[i], files.size() == 1 ? "gguf" : absl::StrFormat("gguf[%d]", i)));
    shards.push_back(std::move(shard));
  }
  ASSIGN_OR_RETURN(const int64_t count, shards[0].GetIntOr("split.count", 1, 1, 99999));
  if (count == 1 && shards.size() == 1) return std::move(shards[0]);
  return Join(std::move(shards));
}

const GgufEntry* GgufFile::FindEntry(std::string_view key) const {
  return FindByName(entries_, entries_by_key_, key, kKeyOf);
}

const TensorInfo* GgufFile::FindTensor(std::string_view name) const {
  return FindByName(tensors_, tensors_by_name_, name, kNameOf);
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key, int64_t min, int64_t max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, IsInteger, "an integer"));
  return CheckedInt(*this, *entry, entry->type, entry->value.data(), min, max);
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key, double min, double max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, IsFloat, "f32 or f64"));
  const double value = LoadFloat(entry->type, entry->value.data());
  if (value >= min && value <= max) return value;
  return InvalidArgument("%s: key '%s' is %g, want %g to %g (at byte %d)", path_, Printable(key), value, min, max,
                         entry->file_offset);
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  const auto is_bool = [](GgufType type) { return type == GgufType::kBool; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, is_bool, "bool"));
  return entry->value[0] != std::byte{0};
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  const auto is_string = [](GgufType type) { return type == GgufType::kString; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, false, is_string, "string"));
  std::string_view value;
  VisitStrings(*entry, 1, [&](std::string_view text) { value = text; });
  return value;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(std::string_view key, int64_t min, int64_t max) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, IsInteger, "array of an integer type"));
  const uint64_t size = *FixedSizeOf(entry->element_type);
  std::vector<int64_t> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    ASSIGN_OR_RETURN(values[i],
                     CheckedInt(*this, *entry, entry->element_type, entry->value.data() + i * size, min, max));
  }
  return values;
}

absl::StatusOr<std::vector<double>> GgufFile::GetFloats(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, IsFloat, "array of f32 or f64"));
  const uint64_t size = *FixedSizeOf(entry->element_type);
  std::vector<double> values(entry->count);
  for (uint64_t i = 0; i < entry->count; ++i) {
    values[i] = LoadFloat(entry->element_type, entry->value.data() + i * size);
  }
  return values;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  const auto is_string = [](GgufType type) { return type == GgufType::kString; };
  ASSIGN_OR_RETURN(const GgufEntry* const entry, EntryOf(*this, key, true, is_string, "array of string"));
  std::vector<std::string_view> values;
  values.reserve(entry->count);
  VisitStrings(*entry, entry->count, [&](std::string_view text) { values.push_back(text); });
  return values;
}

absl::StatusOr<int64_t> GgufFile::GetIntOr(std::string_view key, int64_t absent, int64_t min, int64_t max) const {
  return Has(key) ? GetInt(key, min, max) : absent;
}
absl::StatusOr<double> GgufFile::GetFloatOr(std::string_view key, double absent, double min, double max) const {
  return Has(key) ? GetFloat(key, min, max) : absent;
}
absl::StatusOr<bool> GgufFile::GetBoolOr(std::string_view key, bool absent) const {
  return Has(key) ? GetBool(key) : absent;
}
absl::StatusOr<std::string_view> GgufFile::GetStringOr(std::string_view key, std::string_view absent) const {
  return Has(key) ? GetString(key) : absent;
}

std::string GgufFile::ValueToString(const GgufEntry& entry, size_t max_elements, size_t max_chars) {
  std::vector<std::string> parts;
  if (entry.type != GgufType::kArray) max_elements = 1;
  if (entry.element_type == GgufType::kString) {
    VisitStrings(entry, max_elements, [&](std::string_view text) { parts.push_back(Printable(text, max_chars)); });
  } else {
    const uint64_t size = *FixedSizeOf(entry.element_type);
    for (uint64_t i = 0; i < std::min<uint64_t>(entry.count, max_elements); ++i) {
      VisitNumber(entry.element_type, entry.value.data() + i * size, [&](auto value) {
        using T = decltype(value);
        if constexpr (std::is_same_v<T, bool>) {
          parts.push_back(value ? "true" : "false");
        } else if constexpr (std::is_floating_point_v<T>) {
          parts.push_back(absl::StrFormat("%g", value));
        } else {
          parts.push_back(std::to_string(value));
        }
      });
    }
  }
  if (entry.type != GgufType::kArray) return parts[0];
  std::string text = "[";
  for (size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : ", ") + parts[i];
  if (parts.size() < entry.count) text += absl::StrFormat("%s... %d in all", parts.empty() ? "" : ", ", entry.count);
  return text + "]";
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
