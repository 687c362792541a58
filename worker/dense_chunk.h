#pragma once

// A chunk of the coordinator's stream of dense weights, and the checks that DenseStream and StageWeights make on each chunk
// before its bytes are tiled. Pure functions.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "common/model/dtype.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// Some rows of a tensor.
struct DenseChunk {
  std::string name;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;  // of the whole tensor; a vector has one row
  int64_t first_row = 0, num_rows = 0;
  std::span<const std::byte> data;  // the rows as GGUF stores them; valid until the next call of Next
};

// Where dense weights come from: the coordinator's stream, or a file in tests.
class DenseTensorSource {
 public:
  virtual ~DenseTensorSource() = default;
  // The next chunk, or nullopt at the end. Tensors come in the order of DenseTensorsOf, a tensor's chunks in order of rows.
  virtual absl::StatusOr<std::optional<DenseChunk>> Next() = 0;
};

// The chunk in a message, which it borrows from. InvalidArgument: a dimension beyond 2^31. DataLoss: the checksum is wrong.
absl::StatusOr<DenseChunk> DenseChunkFromProto(const internal::v1::TensorChunk& message);

// Bytes of one row as GGUF stores it. InvalidArgument: Ferry does not compute with the type, or cols are not whole blocks.
absl::StatusOr<int64_t> DenseRowBytes(DType dtype, int64_t cols);

// Checks that `chunk` belongs to `tensor`. InvalidArgument: another name or shape.
absl::Status CheckChunkOf(const DenseTensor& tensor, const DenseChunk& chunk);
// Checks that its rows begin at `next_row` and are of `dtype`. InvalidArgument: another type, a gap, too many rows, or not
// num_rows * row_bytes of data.
absl::Status CheckChunkRows(const DenseTensor& tensor, DType dtype, int64_t row_bytes, int64_t next_row, const DenseChunk& chunk);

}  // namespace ferry
