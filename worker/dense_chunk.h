#pragma once

// One chunk of the coordinator's stream of dense weights, from the message to bytes that may be tiled: pure checks, which
// DenseStream and StageWeights make on every chunk.

#include "common/model/dtype.h"
#include "common/model/model_tensors.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "worker/stage_weights.h"

namespace ferry {

// What the message says, borrowed from it. InvalidArgument: dimensions beyond 2^31; DataLoss: its checksum is wrong.
absl::StatusOr<DenseChunk> DenseChunkFromProto(const internal::v1::TensorChunk& message);

// Bytes of one row as GGUF stores it. InvalidArgument: not a type Ferry computes with, or cols are not whole blocks.
absl::StatusOr<int64_t> DenseRowBytes(DType dtype, int64_t cols);

// Whether `chunk` belongs to `tensor`. InvalidArgument: another name or shape.
absl::Status CheckChunkOf(const DenseTensor& tensor, const DenseChunk& chunk);
// Whether it holds its rows from `next_row` on, in `dtype`. InvalidArgument: another type, a gap, too many rows, or not
// num_rows * row_bytes of data.
absl::Status CheckChunkRows(const DenseTensor& tensor, DType dtype, int64_t row_bytes, int64_t next_row, const DenseChunk& chunk);

}  // namespace ferry
