#pragma once

// The weights of a layer range as messages: the tensors of DenseTensorsOf in order, whole rows at a time, as the file
// has them.

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

inline constexpr int64_t kTensorChunkBytes = int64_t{4} << 20;

// What the chunks of a model held when they were first sent. A file can be written with its size and date as before, so those
// alone do not tell. Thread-safe.
class SentChunks {
 public:
  // FailedPrecondition: the chunk of `tensor` that begins at `first_row` had another hash before.
  absl::Status Check(const std::string& tensor, int64_t first_row, uint64_t hash);

 private:
  std::mutex mutex_;
  std::map<std::pair<std::string, int64_t>, uint64_t> hashes_;
};

class DenseTensorStream {
 public:
  // `sent` is the same object for all streams of a file; both must outlive the stream. Errors as FindDense; InvalidArgument: a
  // row is larger than a chunk; FailedPrecondition: the file changed after it was opened.
  static absl::StatusOr<DenseTensorStream> Create(const GgufFile* file, SentChunks* sent, const ModelConfig& config,
                                                  int64_t first_layer, int64_t end_layer);

  // Fills the next chunk with a copy of its rows and releases the file's pages; false at the end. FailedPrecondition: the file
  // changed after it was opened, so these weights would not belong to the experts that were read from it.
  absl::StatusOr<bool> Next(internal::v1::TensorChunk* chunk);

 private:
  struct Source {
    DenseTensor tensor;
    const TensorInfo* info;
    int64_t row_bytes;
  };
  DenseTensorStream(const GgufFile* file, SentChunks* sent) : file_(*file), sent_(*sent) {}

  const GgufFile& file_;
  SentChunks& sent_;
  std::vector<Source> sources_;
  size_t source_ = 0;
  int64_t row_ = 0;  // next of sources_[source_]
};

}  // namespace ferry
