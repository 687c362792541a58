#include "common/model/model_header.h"

#include <vector>

#include "common/gguf/gguf_writer.h"
#include "common/model/model_tensors.h"

namespace ferry {

std::string ModelHeaderOf(const GgufFile& file) {
  const std::string prefix = std::string(file.GetStringOr("general.architecture", "").value_or("")) + ".";
  const std::vector<std::byte> header = GgufHeaderOf(file, [&](std::string_view key) {
    return key.starts_with(prefix) || key == "general.architecture" || key == "general.name" || key == "general.type";
  });
  return std::string(reinterpret_cast<const char*>(header.data()), header.size());
}

absl::StatusOr<ModelDescription> ModelFromHeader(std::span<const std::byte> header) {
  if (header.size() > kMaxModelHeaderBytes) {
    return InvalidArgument("model has %d bytes, want at most %d", header.size(), kMaxModelHeaderBytes);
  }
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::ParseHeader(header, "model"));
  ModelDescription model;
  ASSIGN_OR_RETURN(model.config, ModelConfig::FromGguf(file));
  RETURN_IF_ERROR(CheckModelTensors(model.config, file));
  ASSIGN_OR_RETURN(model.arena, ArenaLayoutOf(file, model.config));
  return model;
}

}  // namespace ferry
