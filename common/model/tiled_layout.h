#pragma once

// The one layout of every matrix that Ferry multiplies, experts and dense weights alike, on the CPU and on the GPU.
//
// A weight matrix W [rows, cols] (y = W x) is cut into tiles of 16 rows by 32 columns: 16 rows are one AVX-512 register of float
// sums and one tensor-core fragment, 32 columns are one quantisation block or a part of one. A tile's codes are contiguous, and
// the tiles of 16 rows follow each other along the columns, so a CPU thread and a TMA copy both read one straight line of memory:
//
//   codes   [row_tiles][cols / 32]          { field: [16 rows][field bytes] ... }   code_bytes a row
//   scales  [row_tiles][cols / scale_cols]  { field: [16 rows][field bytes] ... }   scale_bytes a row; none for float types
//   rows    [row_tiles]                     [16 rows][row_bytes]                    of types with a scale for a whole row
//
// Which fields a type has and what they mean: common/model/formats. No bits are added: the planes of whole tiles take as many
// bytes as the GGUF rows. The simplest ones, whose block is a scale and one field of codes, as examples:
//
//   type   code_bytes  codes of one block of 32                                     scale
//   MXFP4  16          byte j: element j in bits 0-3, element j+16 in bits 4-7      u8, E8M0: 2^(s-127)
//   Q4_0   16          the same; value = (code - 8) * scale                         f16
//   Q8_0   32          byte j: element j, signed; value = code * scale              f16
//   F16, BF16  64, F32 128   the elements in order                                  -
//
// Rows beyond `rows` (up to a multiple of 16) are zeros, and so are the columns beyond `cols` (up to a multiple of 32), which
// types of single elements may have. Each plane starts on 128 bytes.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/model/dtype.h"
#include "common/model/formats/tile_sizes.h"
#include "common/status.h"

namespace ferry {

inline constexpr int64_t kPlaneAlignment = 128;

struct TiledLayout {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t code_bytes = 0;          // of one row's 32 columns
  int64_t scale_bytes = 0;         // of one row's scale_cols columns; 0 without scales
  int64_t scale_cols = kTileCols;  // columns of one entry of the scale plane: 32 or 256
  int64_t row_bytes = 0;           // of one row in the plane of rows; 0 without it
  int64_t scales_offset = 0;       // bytes from the start of the matrix; the codes are at 0
  int64_t rows_offset = 0;         // likewise
  int64_t bytes = 0;               // all planes, a multiple of kPlaneAlignment

  int64_t row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t col_blocks() const { return (cols + kTileCols - 1) / kTileCols; }
  int64_t padded_cols() const { return col_blocks() * kTileCols; }
  int64_t scale_blocks() const { return cols / scale_cols; }
  int64_t tile_code_bytes() const { return kTileRows * code_bytes; }
  int64_t gguf_row_bytes() const { return row_bytes + cols * code_bytes / kTileCols + scale_blocks() * scale_bytes; }
  int64_t code_offset(int64_t row_tile, int64_t col_block) const {
    return (row_tile * col_blocks() + col_block) * tile_code_bytes();
  }
  int64_t scale_offset(int64_t row_tile, int64_t scale_block) const {
    return scales_offset + (row_tile * scale_blocks() + scale_block) * kTileRows * scale_bytes;
  }
  int64_t row_offset(int64_t row_tile) const { return rows_offset + row_tile * kTileRows * row_bytes; }

  // InvalidArgument: rows or cols not in [1, 2^31), cols not a multiple of the type's block, or a type Ferry does not compute
  // with.
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

// The opposite: the GGUF rows [first_row, first_row + num_rows) of `matrix`. InvalidArgument: sizes disagree.
absl::Status UntileRows(const TiledLayout& layout, int64_t first_row, int64_t num_rows, std::span<const std::byte> matrix,
                        std::span<std::byte> gguf_rows);

// Whether every scale in `matrix`, which holds layout.bytes, is a finite number; elements of float types are not looked at.
// InvalidArgument names the row, counted from first_row, and the columns of the first one that is not. One pass over the scales.
absl::Status CheckScales(const TiledLayout& layout, int64_t first_row, std::span<const std::byte> matrix);

// One element's value: the plain definition of the layout, for references and tests.
double TiledValue(const TiledMatrix& matrix, int64_t row, int64_t col);
// The values of one row, out [cols]. Exact: every value of every type is a float (MXFP4 scales above 2^124 may overflow).
void DecodeTiledRow(const TiledMatrix& matrix, int64_t row, float* out);

}  // namespace ferry
