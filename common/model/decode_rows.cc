#include "common/model/decode_rows.h"

#include <optional>

#include "common/checked_size.h"
#include "common/model/formats/formats.h"

namespace ferry {
namespace {

// `cols` columns of one row after its header.
template <typename F>
void DecodeBlocks(const uint8_t* row, const uint8_t* blocks, int64_t cols, float* out) {
  Parts<F> parts;
  for (int64_t col = 0; col < cols; col += F::kUnitCols, blocks += F::kUnitBytes) {
    F::Move(ToParts(blocks), parts);
    for (int tile = 0; tile < F::kTiles; ++tile) {
      ValuesOf<F>(parts.codes[tile], parts.scales[tile / F::kTilesPerScale], row, tile % F::kTilesPerScale,
                  out + col + tile * kTileCols);
    }
  }
}

// Elements of a type whose block is one element need not come in groups of 32.
template <typename F>
void DecodeElements(const uint8_t* from, int64_t count, float* out) {
  const int64_t whole = count / kTileCols * kTileCols;
  DecodeBlocks<F>(nullptr, from, whole, out);
  if (whole == count) return;
  uint8_t rest[F::kUnitBytes] = {};
  float values[kTileCols];
  std::memcpy(rest, from + whole * F::kBlockBytes, static_cast<size_t>((count - whole) * F::kBlockBytes));
  DecodeBlocks<F>(nullptr, rest, kTileCols, values);
  std::memcpy(out + whole, values, static_cast<size_t>(count - whole) * sizeof(float));
}

}  // namespace

absl::Status DecodeRows(DType dtype, int64_t cols, std::span<const std::byte> data, std::span<float> out) {
  const std::optional<DTypeInfo> info = InfoOf(dtype);
  if (!info || !info->computable) return Unimplemented("Ferry does not decode %s", NameOf(dtype));
  if (cols < 1 || cols % info->block_elements != 0) {
    return InvalidArgument("%d elements are not whole blocks of %d, which %s has", cols, info->block_elements, info->name);
  }
  if (out.size() % static_cast<size_t>(cols) != 0)
    return InvalidArgument("%d elements are not whole rows of %d", out.size(), cols);
  const CheckedSize bytes = CheckedSize(out.size() / static_cast<size_t>(cols)) * CheckedSize(info->RowBytes(cols));
  if (!bytes.valid() || bytes.value() != data.size()) {
    return InvalidArgument("%d elements of %s do not take %d bytes", out.size(), info->name, data.size());
  }
  const auto* row = reinterpret_cast<const uint8_t*>(data.data());
  const int64_t row_bytes = info->RowBytes(cols);
  for (size_t at = 0; at < out.size(); at += static_cast<size_t>(cols), row += row_bytes) {
    WithFormat(dtype, [&]<DType kType>() {
      using F = Format<kType>;
      if constexpr (F::kBlockCols < kTileCols) {
        DecodeElements<F>(row, cols, &out[at]);
      } else {
        DecodeBlocks<F>(row, row + F::kRowBytes, cols, &out[at]);
      }
    });
  }
  return absl::OkStatus();
}

}  // namespace ferry
