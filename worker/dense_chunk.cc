#include "worker/dense_chunk.h"

#include <xxhash.h>

#include <optional>

namespace ferry {
namespace {

constexpr uint64_t kMaxDimension = uint64_t{1} << 31;

}  // namespace

absl::StatusOr<DenseChunk> DenseChunkFromProto(const internal::v1::TensorChunk& message) {
  if (message.rows() > kMaxDimension || message.cols() > kMaxDimension || message.first_row() > kMaxDimension ||
      message.num_rows() > kMaxDimension) {
    return InvalidArgument("tensor '%s' has a chunk of rows %d + %d of %d x %d", message.name(), message.first_row(),
                           message.num_rows(), message.rows(), message.cols());
  }
  const uint64_t checksum = XXH3_64bits(message.data().data(), message.data().size());
  if (checksum != message.xxh3()) {
    return DataLoss("tensor '%s': the chunk at row %d came damaged: its checksum is %016x, want %016x", message.name(),
                    message.first_row(), checksum, message.xxh3());
  }
  return DenseChunk{.name = message.name(),
                    .dtype = static_cast<DType>(message.dtype()),
                    .rows = static_cast<int64_t>(message.rows()),
                    .cols = static_cast<int64_t>(message.cols()),
                    .first_row = static_cast<int64_t>(message.first_row()),
                    .num_rows = static_cast<int64_t>(message.num_rows()),
                    .data = std::as_bytes(std::span(message.data()))};
}

absl::StatusOr<int64_t> DenseRowBytes(DType dtype, int64_t cols) {
  const std::optional<DTypeInfo> info = InfoOf(dtype);
  if (!info || !info->computable) return InvalidArgument("is of type %s, which Ferry does not compute with", NameOf(dtype));
  if (cols % info->block_elements != 0) {
    return InvalidArgument("has %d columns, want a multiple of %d for %s", cols, info->block_elements, NameOf(dtype));
  }
  return info->RowBytes(cols);
}

absl::Status CheckChunkOf(const DenseTensor& tensor, const DenseChunk& chunk) {
  if (chunk.name != tensor.name) return InvalidArgument("is missing: '%s' came in its place", chunk.name);
  if (chunk.rows != tensor.rows || chunk.cols != tensor.cols) {
    return InvalidArgument("is %d x %d, want %d x %d", chunk.rows, chunk.cols, tensor.rows, tensor.cols);
  }
  return absl::OkStatus();
}

absl::Status CheckChunkRows(const DenseTensor& tensor, DType dtype, int64_t row_bytes, int64_t next_row,
                            const DenseChunk& chunk) {
  if (chunk.dtype != dtype) return InvalidArgument("changes its type from %s to %s", NameOf(dtype), NameOf(chunk.dtype));
  if (chunk.first_row != next_row || chunk.num_rows < 1 || chunk.num_rows > tensor.rows - next_row) {
    return InvalidArgument("rows %d to %d came, want some from %d up to %d", chunk.first_row, chunk.first_row + chunk.num_rows,
                           next_row, tensor.rows);
  }
  if (static_cast<int64_t>(chunk.data.size()) != chunk.num_rows * row_bytes) {
    return InvalidArgument("%d rows came in %d bytes, want %d", chunk.num_rows, chunk.data.size(), chunk.num_rows * row_bytes);
  }
  return absl::OkStatus();
}

}  // namespace ferry
