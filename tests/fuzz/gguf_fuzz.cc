// Any bytes as a GGUF file: they are refused, or everything that can be asked of the file stays inside them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/decode_rows.h"
#include "common/model/model_config.h"
#include "common/model/model_tensors.h"

namespace ferry {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void ReadEverything(const GgufFile& file, std::span<const std::byte> bytes) {
  for (const GgufEntry& entry : file.entries()) {
    Require(file.FindEntry(entry.key) == &entry);
    GgufFile::ValueToString(entry, 8);
    // Exactly one of the accessors takes the entry, whatever its type, unless its number is out of range.
    (void)file.GetInt(entry.key);
    (void)file.GetFloat(entry.key, -1, 1);
    (void)file.GetBool(entry.key);
    (void)file.GetString(entry.key);
    (void)file.GetInts(entry.key);
    (void)file.GetFloats(entry.key);
    (void)file.GetStrings(entry.key);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    Require(file.FindTensor(tensor.name) == &tensor);
    Require(tensor.data.data() >= bytes.data() && tensor.data.data() + tensor.bytes() <= bytes.data() + bytes.size());
    std::vector<float> row(static_cast<size_t>(tensor.cols()));
    const bool decoded = DecodeRows(tensor.dtype, tensor.cols(), tensor.data.first(tensor.row_bytes()), row).ok();
    Require(decoded == InfoOf(tensor.dtype)->computable);
  }
  const absl::StatusOr<ModelConfig> config = ModelConfig::FromGguf(file);
  if (!config.ok() || !CheckModelTensors(*config, file).ok()) return;
  for (int64_t layer = 0; layer < config->num_layers; ++layer) {
    if (!config->layers[layer].experts) continue;
    const absl::StatusOr<ExpertTensors> experts = ExpertTensorsOf(*config, file, layer);
    Require(experts.ok());
    for (const ExpertPart& part : {experts->gate, experts->up, experts->down, experts->down_bias}) {
      if (part.tensor == nullptr) continue;
      const std::span<const std::byte> last = part.Of(config->router.num_experts - 1);
      std::vector<float> values(static_cast<size_t>(part.rows * part.cols));
      Require(DecodeRows(part.dtype(), part.cols, last, values).ok());
    }
  }
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  if (const absl::StatusOr<ferry::GgufFile> file = ferry::GgufFile::Parse(bytes); file.ok()) {
    ferry::ReadEverything(*file, bytes);
  }
  // The same bytes as the two files of a split model, cut in the middle.
  const std::span<const std::byte> files[] = {bytes.first(size / 2), bytes.subspan(size / 2)};
  if (const absl::StatusOr<ferry::GgufFile> file = ferry::GgufFile::ParseSplit(files); file.ok()) {
    ferry::ReadEverything(*file, bytes);
  }
  return 0;
}
