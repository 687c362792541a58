#include "coordinator/cluster/dense_tensor_stream.h"

#include <algorithm>

#include "common/model/model_tensors.h"
#include "xxhash.h"

namespace ferry {

absl::StatusOr<DenseTensorStream> DenseTensorStream::Create(const GgufFile* file, const ModelConfig& config, int64_t first_layer,
                                                            int64_t end_layer) {
  DenseTensorStream stream(file);
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

bool DenseTensorStream::Next(internal::v1::TensorChunk* chunk) {
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
  chunk->set_xxh3(XXH3_64bits(rows.data(), rows.size()));
  file_.Release(rows);
  row_ += num_rows;
  if (row_ == source.tensor.rows) ++source_, row_ = 0;
  return true;
}

}  // namespace ferry
