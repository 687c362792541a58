#include "coordinator/cluster/dense_tensor_stream.h"

#include <algorithm>

#include "common/model/model_tensors.h"
#include "xxhash.h"

namespace ferry {

absl::Status SentChunks::Check(const std::string& tensor, int64_t first_row, uint64_t hash) {
  const std::lock_guard lock(mutex_);
  const auto [before, is_new] = hashes_.emplace(std::pair(tensor, first_row), hash);
  if (is_new || before->second == hash) return absl::OkStatus();
  return FailedPrecondition(
      "the model file changed after it was opened: %s is not what it was when it was first sent; start anew", tensor);
}

absl::StatusOr<DenseTensorStream> DenseTensorStream::Create(const GgufFile* file, SentChunks* sent, const ModelConfig& config,
                                                            int64_t first_layer, int64_t end_layer) {
  RETURN_IF_ERROR(file->CheckUnchanged());
  DenseTensorStream stream(file, sent);
  for (DenseTensor& tensor : DenseTensorsOf(config, first_layer, end_layer)) {
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(config, *file, tensor));
    const int64_t row_bytes = static_cast<int64_t>(info->bytes()) / tensor.rows;
    if (row_bytes > kTensorChunkBytes) {
      return InvalidArgument("a row of %s has %d bytes, want at most %d", tensor.name, row_bytes, kTensorChunkBytes);
    }
    stream.sources_.push_back({.tensor = std::move(tensor), .info = info, .row_bytes = row_bytes});
  }
  return stream;
}

absl::StatusOr<bool> DenseTensorStream::Next(internal::v1::TensorChunk* chunk) {
  if (source_ == sources_.size()) return false;
  const Source& source = sources_[source_];
  const int64_t num_rows = std::min(source.tensor.rows - row_, std::max<int64_t>(1, kTensorChunkBytes / source.row_bytes));
  const std::span<const std::byte> rows = source.info->data.subspan(row_ * source.row_bytes, num_rows * source.row_bytes);
  chunk->Clear();
  chunk->set_name(source.tensor.name);
  chunk->set_dtype(static_cast<uint32_t>(source.info->dtype));
  chunk->set_rows(source.tensor.rows);
  chunk->set_cols(source.tensor.cols);
  chunk->set_first_row(row_);
  chunk->set_num_rows(num_rows);
  chunk->set_data(rows.data(), rows.size());
  // Of the copy: the file may be written at any moment, also between two reads of it.
  chunk->set_xxh3(XXH3_64bits(chunk->data().data(), chunk->data().size()));
  RETURN_IF_ERROR(file_.CheckUnchanged());
  RETURN_IF_ERROR(sent_.Check(source.tensor.name, row_, chunk->xxh3()));
  file_.Release(rows);
  row_ += num_rows;
  if (row_ == source.tensor.rows) ++source_, row_ = 0;
  return true;
}

}  // namespace ferry
