#pragma once

// The one layout of every matrix that Ferry multiplies, experts and dense weights alike, on the CPU and on the GPU.
//
// A weight matrix W [rows, cols] (y = W x) is cut into tiles of 16 rows by 32 columns: 32 columns are one quantisation
// block, 16 rows are one AVX-512 register of float sums and one tensor-core fragment. A tile's codes are contiguous, and the
// tiles of 16 rows follow each other along the columns, so a CPU thread and a TMA copy both read one straight line of memory:
//
//   codes   [row_tiles][col_blocks][16 rows][code_bytes]   code_bytes: bytes of one block's codes, below
//   scales  [row_tiles][col_blocks][16 rows]               one scale a block; none for float types
//
//   type   code_bytes  codes of one block of 32                                     scale
//   MXFP4  16          byte j: element j in bits 0-3, element j+16 in bits 4-7      u8, E8M0: 2^(s-127)
//   Q4_0   16          the same; value = (code - 8) * scale                         f16
//   Q8_0   32          byte j: element j, signed; value = code * scale              f16
//   F16, BF16  64, F32 128   the elements in order                                  -
//
// MXFP4 codes are E2M1 (OCP Microscaling Formats 1.0): sign in bit 3, magnitudes 0 0.5 1 1.5 2 3 4 6.
// Rows beyond `rows` (up to a multiple of 16) are zeros. Both planes start on 128 bytes.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileCols = 32;
inline constexpr int64_t kPlaneAlignment = 128;

struct TiledLayout {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t code_bytes = 0;     // of one block of 32 elements
  int64_t scale_bytes = 0;    // of one block's scale; 0 without scales
  int64_t scales_offset = 0;  // bytes from the start of the matrix; the codes are at 0
  int64_t bytes = 0;          // both planes, a multiple of kPlaneAlignment

  int64_t row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t col_blocks() const { return cols / kTileCols; }
  int64_t tile_code_bytes() const { return kTileRows * code_bytes; }
  int64_t code_offset(int64_t row_tile, int64_t col_block) const {
    return (row_tile * col_blocks() + col_block) * tile_code_bytes();
  }
  int64_t scale_offset(int64_t row_tile, int64_t col_block) const {
    return scales_offset + (row_tile * col_blocks() + col_block) * kTileRows * scale_bytes;
  }

  // InvalidArgument: rows or cols not in [1, 2^31), cols not a multiple of 32, or a type Ferry does not compute with.
  static absl::StatusOr<TiledLayout> Create(DType dtype, int64_t rows, int64_t cols);

  bool operator==(const TiledLayout&) const = default;
};

// A matrix in that layout, borrowed; `data` is aligned to kPlaneAlignment, in the memory of the device that multiplies it.
struct TiledMatrix {
  TiledLayout layout;
  const std::byte* data = nullptr;
};

// Writes rows [first_row, first_row + num_rows) of a matrix given as GGUF stores them (row after row, the blocks of
// `layout.dtype` in order) into `matrix`, which holds layout.bytes. Whole tiles are the cheap case. Rows beyond `rows` in a
// last tile that is touched are zeroed. InvalidArgument: sizes disagree.
absl::Status TileRows(const TiledLayout& layout, int64_t first_row, int64_t num_rows, std::span<const std::byte> gguf_rows,
                      std::span<std::byte> matrix);

// One element's value: the plain definition of the layout, for references and tests.
double TiledValue(const TiledMatrix& matrix, int64_t row, int64_t col);
// The values of one row, out [cols]. Exact: every value of every type is a float (MXFP4 scales above 2^124 may overflow).
void DecodeTiledRow(const TiledMatrix& matrix, int64_t row, float* out);

}  // namespace ferry
