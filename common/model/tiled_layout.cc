#include "common/model/tiled_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/checked_size.h"
#include "common/model/formats/formats.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ferry {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 31;

// A type whose GGUF block is one scale and one field of codes, in this order, both kept as they are.
template <typename F>
inline constexpr bool kStreams = F::kIsPlain&& F::CodeFields::kCount == 1 && F::ScaleFields::kCount <= 1;

// Tiles such types at the rate of memory. Sizes are template arguments, so that a block is a few register moves and no call to
// memcpy.
template <int64_t kCodeBytes, int64_t kScaleBytes>
struct PlainTiler {
  static constexpr int64_t kBlockBytes = kCodeBytes + kScaleBytes;

  static void CopyBlock(const std::byte* block, std::byte* codes, std::byte* scale) {
    if constexpr (kScaleBytes > 0) std::memcpy(scale, block, kScaleBytes);
    std::memcpy(codes, block + kScaleBytes, kCodeBytes);
  }

  // As CopyBlock, with 16-byte codes and stores that bypass the caches: the CPU then need not read the lines that it overwrites.
  static void StreamBlock(const std::byte* block, std::byte* codes, std::byte* scale) {
#if defined(__x86_64__)
    if constexpr (kScaleBytes > 0) std::memcpy(scale, block, kScaleBytes);
    for (int64_t at = 0; at < kCodeBytes; at += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(codes + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + kScaleBytes + at)));
    }
#else
    CopyBlock(block, codes, scale);
#endif
  }

  // Sixteen whole rows: the destination is written from front to back, the sources are sixteen lines side by side.
  // Those are too many for the hardware's prefetcher, but the next tile's, at `next`, are one straight piece of memory:
  // fetching it meanwhile and streaming doubled the rate for MXFP4, from 9.4 to 20.8 GB/s, where memcpy reached 19.7
  // (Zen 4, 1 thread).
  template <bool kStream>
  static void CopyTile(const std::byte* rows, const std::byte* next, int64_t col_blocks, std::byte* codes, std::byte* scales) {
    const int64_t row_bytes = col_blocks * kBlockBytes;
    for (int64_t block = 0; block < col_blocks; ++block) {
      const std::byte* source = rows + block * kBlockBytes;
      for (int64_t row = 0; row < kTileRows; ++row) {
        (kStream ? StreamBlock : CopyBlock)(source + row * row_bytes, codes + row * kCodeBytes, scales + row * kScaleBytes);
      }
      for (int64_t at = 0; at < kTileRows * kBlockBytes; at += 64) {
        __builtin_prefetch(next + block * kTileRows * kBlockBytes + at, /*write=*/0, /*locality=*/2);  // into L2
      }
      codes += kTileRows * kCodeBytes;
      scales += kTileRows * kScaleBytes;
    }
  }

  static void CopyRow(const std::byte* row, int64_t col_blocks, int64_t row_in_tile, std::byte* codes, std::byte* scales) {
    codes += row_in_tile * kCodeBytes;
    scales += row_in_tile * kScaleBytes;
    for (int64_t block = 0; block < col_blocks; ++block) {
      CopyBlock(row + block * kBlockBytes, codes + block * kTileRows * kCodeBytes, scales + block * kTileRows * kScaleBytes);
    }
  }

  static void Run(const TiledLayout& layout, int64_t first_row, int64_t num_rows, const std::byte* rows, std::byte* matrix) {
    const int64_t col_blocks = layout.col_blocks(), row_bytes = col_blocks * kBlockBytes;
    const int64_t end_row = first_row + num_rows;
    const bool stream = reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
    for (int64_t row = first_row; row < end_row;) {
      const int64_t tile = row / kTileRows, row_in_tile = row % kTileRows;
      std::byte* codes = matrix + layout.code_offset(tile, 0);
      std::byte* scales = matrix + layout.scale_offset(tile, 0);
      if (row_in_tile == 0 && end_row - row >= kTileRows) {
        const std::byte* next = end_row - row >= 2 * kTileRows ? rows + kTileRows * row_bytes : rows;
        (stream ? CopyTile<true> : CopyTile<false>)(rows, next, col_blocks, codes, scales);
        row += kTileRows;
        rows += kTileRows * row_bytes;
      } else {
        CopyRow(rows, col_blocks, row_in_tile, codes, scales);
        ++row;
        rows += row_bytes;
      }
    }
#if defined(__x86_64__)
    _mm_sfence();  // streamed stores are not ordered by themselves: they come before the flag that tells others of them
#endif
  }
};

// One row's fields of an entry, from where the fields of 16 rows begin, side by side; and back.
template <typename FieldList>
void GatherFields(const uint8_t* entry, int64_t row, uint8_t* part) {
  for (const int64_t size : FieldList::kSizes) {
    std::memcpy(part, entry + row * size, static_cast<size_t>(size));
    entry += kTileRows * size, part += size;
  }
}
template <typename FieldList>
void ScatterFields(const uint8_t* part, int64_t row, uint8_t* entry) {
  for (const int64_t size : FieldList::kSizes) {
    std::memcpy(entry + row * size, part, static_cast<size_t>(size));
    entry += kTileRows * size, part += size;
  }
}

// Where the entries of one row begin, in bytes from the start of the matrix. A unit: the columns that are tiled at once.
template <typename F>
struct RowOfTiles {
  RowOfTiles(const TiledLayout& layout, int64_t row)
      : tile(row / kTileRows),
        row_in_tile(row % kTileRows),
        codes_at(layout.code_offset(tile, 0)),
        scales_at(layout.scale_offset(tile, 0)),
        header_at(layout.row_offset(tile) + row_in_tile * F::kRowBytes) {}

  int64_t CodesAt(int64_t unit, int i) const { return codes_at + (unit * F::kTiles + i) * kTileRows * F::kCodeBytes; }
  int64_t ScalesAt(int64_t unit, int i) const { return scales_at + (unit * F::kScaleBlocks + i) * kTileRows * F::kScaleBytes; }

  int64_t tile, row_in_tile, codes_at, scales_at, header_at;
};

template <typename F>
void TileRow(const TiledLayout& layout, int64_t row, const uint8_t* gguf, uint8_t* matrix) {
  const RowOfTiles<F> place(layout, row);
  std::memcpy(matrix + place.header_at, gguf, F::kRowBytes);
  gguf += F::kRowBytes;
  Parts<F> parts;
  for (int64_t unit = 0; unit < layout.cols / F::kUnitCols; ++unit, gguf += F::kUnitBytes) {
    F::Move(ToParts(gguf), parts);
    for (int i = 0; i < F::kTiles; ++i) {
      ScatterFields<typename F::CodeFields>(parts.codes[i], place.row_in_tile, matrix + place.CodesAt(unit, i));
    }
    for (int i = 0; i < F::kScaleBlocks; ++i) {
      ScatterFields<typename F::ScaleFields>(parts.scales[i], place.row_in_tile, matrix + place.ScalesAt(unit, i));
    }
  }
}

template <typename F>
void UntileRow(const TiledLayout& layout, int64_t row, const uint8_t* matrix, uint8_t* gguf) {
  const RowOfTiles<F> place(layout, row);
  std::memcpy(gguf, matrix + place.header_at, F::kRowBytes);
  gguf += F::kRowBytes;
  Parts<F> parts;
  for (int64_t unit = 0; unit < layout.cols / F::kUnitCols; ++unit, gguf += F::kUnitBytes) {
    for (int i = 0; i < F::kTiles; ++i) {
      GatherFields<typename F::CodeFields>(matrix + place.CodesAt(unit, i), place.row_in_tile, parts.codes[i]);
    }
    for (int i = 0; i < F::kScaleBlocks; ++i) {
      GatherFields<typename F::ScaleFields>(matrix + place.ScalesAt(unit, i), place.row_in_tile, parts.scales[i]);
    }
    std::memset(gguf, 0, F::kUnitBytes);
    F::Move(ToBlock(gguf), parts);
  }
}

template <typename F>
void ZeroRow(const TiledLayout& layout, int64_t row, uint8_t* matrix) {
  const RowOfTiles<F> place(layout, row);
  const uint8_t zeros[std::max({F::kCodeBytes, F::kScaleBytes, 1})] = {};
  std::memset(matrix + place.header_at, 0, F::kRowBytes);
  for (int64_t unit = 0; unit < layout.cols / F::kUnitCols; ++unit) {
    for (int i = 0; i < F::kTiles; ++i) {
      ScatterFields<typename F::CodeFields>(zeros, place.row_in_tile, matrix + place.CodesAt(unit, i));
    }
    for (int i = 0; i < F::kScaleBlocks; ++i) {
      ScatterFields<typename F::ScaleFields>(zeros, place.row_in_tile, matrix + place.ScalesAt(unit, i));
    }
  }
}

template <typename F>
void TileRowsOf(const TiledLayout& layout, int64_t first_row, int64_t num_rows, const std::byte* gguf, std::byte* matrix) {
  uint8_t* const to = reinterpret_cast<uint8_t*>(matrix);
  if constexpr (kStreams<F>) {
    PlainTiler<F::kCodeBytes, F::kScaleBytes>::Run(layout, first_row, num_rows, gguf, matrix);
  } else {
    const uint8_t* const from = reinterpret_cast<const uint8_t*>(gguf);
    for (int64_t i = 0; i < num_rows; ++i) TileRow<F>(layout, first_row + i, from + i * layout.gguf_row_bytes(), to);
  }
  // The rows that pad the last tile are zeroed with it, so that a matrix made in any pieces is the same bytes.
  if (first_row + num_rows <= (layout.row_tiles() - 1) * kTileRows) return;
  for (int64_t row = layout.rows; row < layout.row_tiles() * kTileRows; ++row) ZeroRow<F>(layout, row, to);
}

// The same matrix with the columns that pad its last tile.
TiledLayout Padded(TiledLayout layout) {
  layout.cols = layout.padded_cols();
  return layout;
}

// The 32 values of block `block` of one row.
template <typename F>
void DecodeTile(const TiledMatrix& matrix, int64_t row, int64_t block, float* out) {
  const TiledLayout& layout = matrix.layout;
  const RowOfTiles<F> place(layout, row);
  const uint8_t* const data = reinterpret_cast<const uint8_t*>(matrix.data);
  Parts<F> parts;
  GatherFields<typename F::CodeFields>(data + place.CodesAt(0, 0) + block * kTileRows * F::kCodeBytes, place.row_in_tile,
                                       parts.codes[0]);
  GatherFields<typename F::ScaleFields>(data + place.ScalesAt(0, 0) + block / F::kTilesPerScale * kTileRows * F::kScaleBytes,
                                        place.row_in_tile, parts.scales[0]);
  ValuesOf<F>(parts.codes[0], parts.scales[0], data + place.header_at, static_cast<int>(block % F::kTilesPerScale), out);
}

// The first row of the sixteen of `entry` whose scale is not finite, or kTileRows.
template <typename F>
int64_t FirstBrokenScale(const uint8_t* entry) {
  if constexpr (F::kHalves > 0) {
    uint16_t halves[F::kHalves * kTileRows];
    std::memcpy(halves, entry, sizeof(halves));
    int broken = 0;  // without branches, so that compilers make vectors of it
    for (const uint16_t half : halves) broken |= (half & 0x7C00) == 0x7C00;
    if (broken == 0) return kTileRows;
    for (int64_t i = 0; i < F::kHalves * kTileRows; ++i) {
      if (!IsFiniteHalf(halves[i])) return i % kTileRows;
    }
  } else if constexpr (requires { &F::Finite; }) {
    for (int64_t row = 0; row < kTileRows; ++row) {
      uint8_t scales[F::kScaleBytes];
      GatherFields<typename F::ScaleFields>(entry, row, scales);
      if (!F::Finite(scales)) return row;
    }
  }
  return kTileRows;
}

template <typename F>
absl::Status CheckScalesOf(const TiledLayout& layout, int64_t first_row, const uint8_t* matrix) {
  if constexpr (F::kScaleBytes > 0) {
    for (int64_t tile = 0; tile < layout.row_tiles(); ++tile) {
      for (int64_t block = 0; block < layout.scale_blocks(); ++block) {
        const int64_t row = FirstBrokenScale<F>(matrix + layout.scale_offset(tile, block));
        if (row == kTileRows) continue;
        return InvalidArgument("the scale of row %d, columns %d to %d, is not a finite number",
                               first_row + tile * kTileRows + row, block * F::kScaleCols, (block + 1) * F::kScaleCols - 1);
      }
    }
  }
  if constexpr (F::kRowBytes > 0) {
    for (int64_t row = 0; row < layout.rows; ++row) {
      const uint8_t* const header = matrix + layout.row_offset(0) + row * F::kRowBytes;
      const bool finite = F::kRowBytes == 4 ? std::isfinite(LoadAs<float>(header)) : IsFiniteHalf(LoadAs<uint16_t>(header));
      if (!finite) return InvalidArgument("the scale of row %d is not a finite number", first_row + row);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRows(const TiledLayout& layout, int64_t first_row, int64_t num_rows, size_t gguf_bytes, size_t matrix_bytes) {
  if (first_row < 0 || num_rows < 0 || first_row > layout.rows || num_rows > layout.rows - first_row) {
    return InvalidArgument("rows [%d, %d + %d) are not in a matrix of %d rows", first_row, first_row, num_rows, layout.rows);
  }
  const CheckedSize wanted = CheckedSize(num_rows) * CheckedSize(layout.gguf_row_bytes());
  if (wanted.value_or(0) != gguf_bytes) {
    return InvalidArgument("gguf_rows holds %d bytes, want %d for %d rows of %d %s", gguf_bytes, wanted.value_or(0), num_rows,
                           layout.cols, NameOf(layout.dtype));
  }
  if (matrix_bytes < static_cast<size_t>(layout.bytes)) {
    return InvalidArgument("matrix holds %d bytes, want %d", matrix_bytes, layout.bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TiledLayout> TiledLayout::Create(DType dtype, int64_t rows, int64_t cols) {
  if (rows < 1 || rows >= kMaxDimension) return InvalidArgument("rows is %d, want 1 to 2147483647", rows);
  if (cols < 1 || cols >= kMaxDimension) return InvalidArgument("cols is %d, want 1 to 2147483647", cols);
  TiledLayout layout;
  layout.dtype = dtype;
  layout.rows = rows;
  layout.cols = cols;
  int64_t block_cols = kTileCols;
  const bool known = WithFormat(dtype, [&]<DType kType>() {
    using F = Format<kType>;
    block_cols = F::kBlockCols;
    layout.code_bytes = F::kCodeBytes;
    layout.scale_bytes = F::kScaleBytes;
    layout.scale_cols = F::kScaleCols;
    layout.row_bytes = F::kRowBytes;
  });
  if (!known) return InvalidArgument("type %s cannot be multiplied; want one of %s", NameOf(dtype), ComputableTypes());
  if (cols % block_cols != 0) return InvalidArgument("cols is %d, want a multiple of %d for %s", cols, block_cols, NameOf(dtype));

  const CheckedSize tile_rows = CheckedSize(layout.row_tiles()) * CheckedSize(kTileRows);
  const CheckedSize codes = tile_rows * CheckedSize(layout.col_blocks()) * CheckedSize(layout.code_bytes);
  const CheckedSize scales = tile_rows * CheckedSize(layout.scale_blocks()) * CheckedSize(layout.scale_bytes);
  const CheckedSize scales_offset = codes.AlignedUp(kPlaneAlignment);
  const CheckedSize rows_offset = scales_offset + scales.AlignedUp(kPlaneAlignment);
  const CheckedSize bytes = rows_offset + (tile_rows * CheckedSize(layout.row_bytes)).AlignedUp(kPlaneAlignment);
  if (!bytes.valid()) return InvalidArgument("a matrix of [%d, %d] %s is too large", rows, cols, NameOf(dtype));
  layout.scales_offset = static_cast<int64_t>(scales_offset.value());
  layout.rows_offset = static_cast<int64_t>(rows_offset.value());
  layout.bytes = static_cast<int64_t>(bytes.value());
  return layout;
}

absl::Status TileRows(const TiledLayout& layout, int64_t first_row, int64_t num_rows, std::span<const std::byte> gguf_rows,
                      std::span<std::byte> matrix) {
  RETURN_IF_ERROR(CheckRows(layout, first_row, num_rows, gguf_rows.size(), matrix.size()));
  if (num_rows == 0) return absl::OkStatus();
  if (const TiledLayout padded = Padded(layout); padded.cols != layout.cols) {
    std::vector<std::byte> rows(static_cast<size_t>(num_rows * padded.gguf_row_bytes()));
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(&rows[row * padded.gguf_row_bytes()], &gguf_rows[row * layout.gguf_row_bytes()], layout.gguf_row_bytes());
    }
    return TileRows(padded, first_row, num_rows, rows, matrix);
  }
  WithFormat(layout.dtype,
             [&]<DType kType>() { TileRowsOf<Format<kType>>(layout, first_row, num_rows, gguf_rows.data(), matrix.data()); });
  return absl::OkStatus();
}

absl::Status UntileRows(const TiledLayout& layout, int64_t first_row, int64_t num_rows, std::span<const std::byte> matrix,
                        std::span<std::byte> gguf_rows) {
  RETURN_IF_ERROR(CheckRows(layout, first_row, num_rows, gguf_rows.size(), matrix.size()));
  if (const TiledLayout padded = Padded(layout); padded.cols != layout.cols) {
    std::vector<std::byte> rows(static_cast<size_t>(num_rows * padded.gguf_row_bytes()));
    RETURN_IF_ERROR(UntileRows(padded, first_row, num_rows, matrix, rows));
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(&gguf_rows[row * layout.gguf_row_bytes()], &rows[row * padded.gguf_row_bytes()], layout.gguf_row_bytes());
    }
    return absl::OkStatus();
  }
  const auto* const from = reinterpret_cast<const uint8_t*>(matrix.data());
  auto* const to = reinterpret_cast<uint8_t*>(gguf_rows.data());
  WithFormat(layout.dtype, [&]<DType kType>() {
    for (int64_t i = 0; i < num_rows; ++i)
      UntileRow<Format<kType>>(layout, first_row + i, from, to + i * layout.gguf_row_bytes());
  });
  return absl::OkStatus();
}

absl::Status CheckScales(const TiledLayout& layout, int64_t first_row, std::span<const std::byte> matrix) {
  if (matrix.size() < static_cast<size_t>(layout.bytes)) {
    return InvalidArgument("matrix holds %d bytes, want %d", matrix.size(), layout.bytes);
  }
  absl::Status status;
  WithFormat(layout.dtype, [&]<DType kType>() {
    status = CheckScalesOf<Format<kType>>(layout, first_row, reinterpret_cast<const uint8_t*>(matrix.data()));
  });
  return status;
}

double TiledValue(const TiledMatrix& matrix, int64_t row, int64_t col) {
  float values[kTileCols] = {};
  WithFormat(matrix.layout.dtype, [&]<DType kType>() { DecodeTile<Format<kType>>(matrix, row, col / kTileCols, values); });
  return values[col % kTileCols];
}

void DecodeTiledRow(const TiledMatrix& matrix, int64_t row, float* out) {
  WithFormat(matrix.layout.dtype, [&]<DType kType>() {
    const int64_t whole = matrix.layout.cols / kTileCols, rest = matrix.layout.cols % kTileCols;
    for (int64_t block = 0; block < whole; ++block) DecodeTile<Format<kType>>(matrix, row, block, out + block * kTileCols);
    if (rest == 0) return;
    float values[kTileCols];
    DecodeTile<Format<kType>>(matrix, row, whole, values);
    std::copy_n(values, rest, out + whole * kTileCols);
  });
}

}  // namespace ferry
