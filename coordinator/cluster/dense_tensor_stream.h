#pragma once

// The weights of a layer range as messages: the tensors of DenseTensorsOf in order, whole rows at a time, as the file
// has them.

#include <cstdint>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

inline constexpr int64_t kTensorChunkBytes = int64_t{4} << 20;

class DenseTensorStream {
 public:
  // `file` must outlive the stream. Errors as FindDense; InvalidArgument: a row is larger than a chunk.
  static absl::StatusOr<DenseTensorStream> Create(const GgufFile* file, const ModelConfig& config, int64_t first_layer,
                                                  int64_t end_layer);

  // Fills the next chunk with a copy of its rows and releases the file's pages; false at the end.
  bool Next(internal::v1::TensorChunk* chunk);

 private:
  struct Source {
    DenseTensor tensor;
    const TensorInfo* info;
    int64_t row_bytes;
  };
  explicit DenseTensorStream(const GgufFile* file) : file_(*file) {}

  const GgufFile& file_;
  std::vector<Source> sources_;
  size_t source_ = 0;
  int64_t row_ = 0;  // next of sources_[source_]
};

}  // namespace ferry
