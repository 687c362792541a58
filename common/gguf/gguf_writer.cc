#include "common/gguf/gguf_writer.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "common/checked_size.h"
#include "common/output_file.h"

namespace ferry {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;  // stays in a core's L2 between being made and being written

absl::StatusOr<uint64_t> TensorBytes(std::string_view name, DType dtype, const std::vector<int64_t>& dims) {
  const std::optional<DTypeInfo> info = InfoOf(dtype);
  if (!info) return InvalidArgument("tensor '%s': unknown type %d", name, static_cast<uint32_t>(dtype));
  if (dims.empty() || dims.size() > 4) return InvalidArgument("tensor '%s' has %d dimensions", name, dims.size());
  CheckedSize elements = 1;
  for (const int64_t dim : dims) elements = elements * CheckedSize(static_cast<uint64_t>(dim));
  if (!elements.valid() || elements.value() == 0 || dims[0] % info->block_elements != 0) {
    return InvalidArgument("tensor '%s': rows of %d elements are not whole blocks of %s, or a dimension is not positive", name,
                           dims[0], info->name);
  }
  const CheckedSize blocks = CheckedSize(elements.value() / info->block_elements);
  const CheckedSize rows = CheckedSize(elements.value() / static_cast<uint64_t>(dims[0]));
  const CheckedSize bytes = blocks * CheckedSize(info->block_bytes) + rows * CheckedSize(info->row_header_bytes);
  if (!bytes.valid()) return InvalidArgument("tensor '%s' takes 2^63 bytes or more", name);
  return bytes.value();
}

}  // namespace

GgufBytes& GgufBytes::Raw(std::string_view text) { return Raw(std::as_bytes(std::span(text))); }

GgufBytes& GgufBytes::Raw(std::span<const std::byte> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return *this;
}

GgufBytes& GgufBytes::String(std::string_view text) { return Add(uint64_t{text.size()}).Raw(text); }

GgufBytes& GgufBytes::Zeros(size_t count) {
  bytes_.resize(bytes_.size() + count);
  return *this;
}

GgufBytes& GgufBytes::PadTo(size_t alignment) { return Zeros((alignment - bytes_.size() % alignment) % alignment); }

GgufBytes& GgufBytes::Header(uint64_t num_tensors, uint64_t num_entries, uint32_t version) {
  return Raw("GGUF").Add(version).Add(num_tensors).Add(num_entries);
}

GgufBytes& GgufBytes::Key(std::string_view key, GgufType type) { return String(key).Add(type); }

GgufBytes& GgufBytes::ArrayKey(std::string_view key, GgufType element_type, uint64_t count) {
  return Key(key, GgufType::kArray).Add(element_type).Add(count);
}

GgufBytes& GgufBytes::Tensor(std::string_view name, std::span<const uint64_t> dims, DType type, uint64_t offset) {
  String(name).Add(static_cast<uint32_t>(dims.size()));
  for (const uint64_t dim : dims) Add(dim);
  return Add(type).Add(offset);
}

std::vector<std::byte> GgufHeaderOf(const GgufFile& file, const std::function<bool(std::string_view key)>& keep) {
  std::vector<const GgufEntry*> kept;
  for (const GgufEntry& entry : file.entries()) {
    if (keep(entry.key)) kept.push_back(&entry);
  }
  GgufBytes bytes;
  bytes.Header(file.tensors().size(), kept.size(), file.version());
  for (const GgufEntry* const entry : kept) {
    if (entry->type == GgufType::kArray) {
      bytes.ArrayKey(entry->key, entry->element_type, entry->count);
    } else {
      bytes.Key(entry->key, entry->type);
    }
    bytes.Raw(entry->value);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    std::vector<uint64_t> dims(tensor.dims.begin(), tensor.dims.begin() + tensor.num_dims);
    bytes.Tensor(tensor.name, dims, tensor.dtype, 0);
  }
  return std::move(bytes).Take();
}

GgufWriter::GgufWriter(uint64_t alignment, uint32_t version) : alignment_(alignment), version_(version) {
  if (alignment != kGgufDefaultAlignment) SetUint32("general.alignment", static_cast<uint32_t>(alignment));
}

GgufBytes& GgufWriter::EntryOf(std::string_view key) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  Entry& entry = found == entries_.end() ? entries_.emplace_back(Entry{std::string(key), {}}) : *found;
  return entry.encoded = GgufBytes();
}

void GgufWriter::SetString(std::string_view key, std::string_view value) {
  EntryOf(key).Key(key, GgufType::kString).String(value);
}

void GgufWriter::SetStrings(std::string_view key, std::span<const std::string> values) {
  GgufBytes& entry = EntryOf(key).ArrayKey(key, GgufType::kString, values.size());
  for (const std::string& value : values) entry.String(value);
}

template <typename T>
void GgufWriter::SetArray(std::string_view key, GgufType element_type, std::span<const T> values) {
  EntryOf(key).ArrayKey(key, element_type, values.size()).Raw(std::as_bytes(values));
}
void GgufWriter::SetBools(std::string_view key, const std::vector<bool>& values) {
  const std::vector<uint8_t> bytes(values.begin(), values.end());
  SetArray(key, GgufType::kBool, std::span<const uint8_t>(bytes));
}
void GgufWriter::SetInt32s(std::string_view key, std::span<const int32_t> values) { SetArray(key, GgufType::kInt32, values); }
void GgufWriter::SetFloat32s(std::string_view key, std::span<const float> values) { SetArray(key, GgufType::kFloat32, values); }

void GgufWriter::Remove(std::string_view key) {
  std::erase_if(entries_, [&](const Entry& entry) { return entry.key == key; });
}

absl::Status GgufWriter::AddTensor(std::string_view name, DType dtype, std::vector<int64_t> dims, std::vector<std::byte> data) {
  ASSIGN_OR_RETURN(const uint64_t bytes, TensorBytes(name, dtype, dims));
  if (data.size() != bytes) return InvalidArgument("tensor '%s' takes %d bytes, got %d", name, bytes, data.size());
  const auto shared = std::make_shared<const std::vector<std::byte>>(std::move(data));  // a std::function is copyable
  return AddTensor(name, dtype, std::move(dims), [shared](uint64_t offset, std::span<std::byte> out) {
    std::memcpy(out.data(), shared->data() + offset, out.size());
  });
}

absl::Status GgufWriter::AddTensor(std::string_view name, DType dtype, std::vector<int64_t> dims, Fill fill) {
  ASSIGN_OR_RETURN(const uint64_t bytes, TensorBytes(name, dtype, dims));
  tensors_.push_back({std::string(name), dtype, std::move(dims), bytes, std::move(fill)});
  return absl::OkStatus();
}

void GgufWriter::RemoveTensor(std::string_view name) {
  std::erase_if(tensors_, [&](const Tensor& tensor) { return tensor.name == name; });
}

GgufWriter::Plan GgufWriter::PlanFile(std::string path, std::span<const Entry> entries, std::span<const Tensor> tensors) const {
  GgufBytes header;
  header.Header(tensors.size(), entries.size(), version_);
  for (const Entry& entry : entries) header.Raw(entry.encoded.bytes());
  std::vector<uint64_t> offsets;
  uint64_t data_bytes = 0;
  for (const Tensor& tensor : tensors) {
    offsets.push_back(data_bytes);
    header.Tensor(tensor.name, std::vector<uint64_t>(tensor.dims.begin(), tensor.dims.end()), tensor.dtype, data_bytes);
    data_bytes += CheckedSize(tensor.bytes).AlignedUp(alignment_).value();
  }
  if (!tensors.empty()) header.PadTo(alignment_);  // a file of metadata alone ends where it ends

  Plan plan{std::move(path), std::move(header).Take(), {}, 0};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const DTypeInfo info = *InfoOf(tensors[i].dtype);
    // Whole blocks; of types with a header before each row, whole rows.
    const uint64_t unit = static_cast<uint64_t>(info.row_header_bytes > 0 ? info.RowBytes(tensors[i].dims[0]) : info.block_bytes);
    const uint64_t chunk = std::max<uint64_t>(1, kChunkBytes / unit) * unit;
    for (uint64_t offset = 0; offset < tensors[i].bytes; offset += chunk) {
      plan.chunks.push_back(
          {&tensors[i], offset, std::min(chunk, tensors[i].bytes - offset), plan.header.size() + offsets[i] + offset});
    }
  }
  plan.bytes = plan.header.size() + data_bytes;
  return plan;
}

std::vector<GgufWriter::Plan> GgufWriter::PlanSplit(const std::string& path, int num_shards) const {
  // Tensors in order, cut where a shard has its share of the bytes.
  uint64_t total = 0;
  for (const Tensor& tensor : tensors_) total += tensor.bytes;
  std::vector<std::span<const Tensor>> shards;
  uint64_t done = 0;
  size_t begin = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    done += tensors_[i].bytes;
    const uint64_t share = total / static_cast<uint64_t>(num_shards) * (shards.size() + 1);
    if (done < share && i + 1 < tensors_.size()) continue;
    if (static_cast<int>(shards.size()) + 1 == num_shards && i + 1 < tensors_.size()) continue;
    shards.push_back(std::span(tensors_).subspan(begin, i + 1 - begin));
    begin = i + 1;
  }

  const std::string_view stem =
      path.ends_with(".gguf") ? std::string_view(path).substr(0, path.size() - 5) : std::string_view(path);
  std::vector<Plan> plans;
  for (size_t i = 0; i < shards.size(); ++i) {
    GgufWriter metadata(alignment_, version_);
    if (i == 0) metadata.entries_ = entries_;
    metadata.SetUint16("split.no", static_cast<uint16_t>(i));
    metadata.SetUint16("split.count", static_cast<uint16_t>(shards.size()));
    metadata.SetInt32("split.tensors.count", static_cast<int32_t>(tensors_.size()));
    plans.push_back(PlanFile(absl::StrFormat("%s-%05d-of-%05d.gguf", stem, i + 1, shards.size()), metadata.entries_, shards[i]));
  }
  return plans;
}

std::vector<std::byte> GgufWriter::ToBytes() const {
  const Plan plan = PlanFile("", entries_, tensors_);
  std::vector<std::byte> bytes(plan.bytes);
  std::copy(plan.header.begin(), plan.header.end(), bytes.begin());
  for (const Chunk& chunk : plan.chunks) {
    chunk.tensor->fill(chunk.offset, std::span(bytes).subspan(chunk.file_offset, chunk.bytes));
  }
  return bytes;
}

absl::Status GgufWriter::WriteFile(const std::string& path, const FileOptions& options) const {
  if (options.num_shards < 1 || options.num_shards > 65535) {
    return InvalidArgument("num_shards is %d, want 1 to 65535", options.num_shards);
  }
  std::vector<Plan> plans;
  if (options.num_shards > 1 && !tensors_.empty()) {
    plans = PlanSplit(path, options.num_shards);
  } else {
    plans.push_back(PlanFile(path, entries_, tensors_));
  }
  uint64_t bytes_total = 0, bytes_done = 0;
  for (const Plan& plan : plans) bytes_total += plan.bytes;
  const OutputFileOptions output = {.force = options.force};
  for (const Plan& plan : plans) RETURN_IF_ERROR(CheckOutput(plan.path, output));

  for (const Plan& plan : plans) {
    ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(plan.path, output));
    RETURN_IF_ERROR(file->Reserve(plan.bytes));
    RETURN_IF_ERROR(file->WriteAt(0, plan.header));
    bytes_done += plan.header.size();

    std::atomic<size_t> next_chunk = 0;
    std::mutex mutex;  // guards failure and bytes_done, and serialises progress
    absl::Status failure;
    const auto work = [&] {
      std::vector<std::byte> buffer;
      for (size_t i = next_chunk++; i < plan.chunks.size(); i = next_chunk++) {
        const Chunk& chunk = plan.chunks[i];
        buffer.resize(chunk.bytes);
        chunk.tensor->fill(chunk.offset, buffer);
        const absl::Status status = file->WriteAt(chunk.file_offset, buffer);
        const std::lock_guard lock(mutex);
        if (!status.ok()) failure = status;
        if (!failure.ok()) return;
        bytes_done += chunk.bytes;
        if (options.progress) options.progress(bytes_done, bytes_total);
      }
    };
    {
      std::vector<std::jthread> threads;
      for (int i = 1; i < options.num_threads; ++i) threads.emplace_back(work);
      work();
    }
    RETURN_IF_ERROR(failure);
    RETURN_IF_ERROR(file->Commit());
  }
  return absl::OkStatus();
}

}  // namespace ferry
