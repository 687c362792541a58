#include "common/model/expert_layout.h"

#include <algorithm>
#include <utility>

#include "common/checked_size.h"
#include "common/model/limits.h"

namespace ferry {
namespace {

// Lays regions one after the other and remembers an overflow until the end.
class RecordBuilder {
 public:
  int64_t Add(CheckedSize bytes) {
    const CheckedSize offset = end_.AlignedUp(kPlaneAlignment);
    end_ = offset + bytes;
    return static_cast<int64_t>(offset.value_or(0));
  }
  CheckedSize end() const { return end_.AlignedUp(kRecordAlignment); }

 private:
  CheckedSize end_ = 0;
};

absl::StatusOr<TiledLayout> Matrix(std::string_view name, DType dtype, int64_t rows, int64_t cols) {
  absl::StatusOr<TiledLayout> layout = TiledLayout::Create(dtype, rows, cols);
  if (!layout.ok()) return Annotate(layout.status(), name);
  return layout;
}

CheckedSize BiasBytes(const TiledLayout& matrix) { return CheckedSize(matrix.row_tiles()) * kTileRows * sizeof(float); }

}  // namespace

absl::StatusOr<ExpertLayout> ExpertLayout::Create(DType gate, DType up, DType down, int64_t n_embd, int64_t n_ff, bool has_bias) {
  ExpertLayout layout;
  ASSIGN_OR_RETURN(layout.gate, Matrix("gate", gate, n_ff, n_embd));
  ASSIGN_OR_RETURN(layout.up, Matrix("up", up, n_ff, n_embd));
  ASSIGN_OR_RETURN(layout.down, Matrix("down", down, n_embd, n_ff));
  layout.has_bias = has_bias;
  RecordBuilder record;
  layout.gate_offset = record.Add(layout.gate.bytes);
  layout.up_offset = record.Add(layout.up.bytes);
  layout.down_offset = record.Add(layout.down.bytes);
  if (has_bias) {
    layout.gate_bias_offset = record.Add(BiasBytes(layout.gate));
    layout.up_bias_offset = record.Add(BiasBytes(layout.up));
    layout.down_bias_offset = record.Add(BiasBytes(layout.down));
  }
  if (!record.end().valid()) return InvalidArgument("an expert of n_embd %d, n_ff %d is too large", n_embd, n_ff);
  layout.bytes = static_cast<int64_t>(record.end().value());
  return layout;
}

absl::StatusOr<ArenaLayout> ArenaLayout::Create(std::vector<std::optional<ExpertLayout>> layers, int64_t num_experts) {
  if (num_experts < 1 || num_experts > kMaxExperts) {
    return InvalidArgument("num_experts is %d, want 1 to %d", num_experts, kMaxExperts);
  }
  ArenaLayout arena;
  CheckedSize end = 0;
  for (const std::optional<ExpertLayout>& layer : layers) {
    arena.layer_offsets_.push_back(static_cast<int64_t>(end.value_or(0)));
    arena.has_experts_.push_back(layer.has_value());
    arena.layers_.push_back(layer.value_or(ExpertLayout()));
    if (!layer) continue;
    arena.max_record_bytes_ = std::max(arena.max_record_bytes_, layer->bytes);
    end = end + CheckedSize(layer->bytes) * num_experts;
  }
  if (!end.valid()) return InvalidArgument("%d layers of %d experts are too large", layers.size(), num_experts);
  if (arena.max_record_bytes_ == 0) return InvalidArgument("layers have no experts, want at least one layer of experts");
  arena.num_experts_ = num_experts;
  arena.bytes_ = static_cast<int64_t>(end.value());
  return arena;
}

int64_t ArenaLayout::NextWithExperts(int64_t layer, int64_t end) const {
  while (layer < end && !has_experts_[layer]) ++layer;
  return layer;
}

int64_t ArenaLayout::num_records(int64_t first, int64_t end) const {
  return std::count(has_experts_.begin() + first, has_experts_.begin() + end, true) * num_experts_;
}

absl::StatusOr<int64_t> ArenaLayout::OffsetOf(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= num_layers()) return InvalidArgument("layer is %d, want 0 to %d", layer, num_layers() - 1);
  if (!has_experts_[layer]) return InvalidArgument("layer is %d, which has no experts", layer);
  if (expert < 0 || expert >= num_experts_) {
    return InvalidArgument("expert is %d, want 0 to %d", expert, num_experts_ - 1);
  }
  return layer_offsets_[layer] + expert * layers_[layer].bytes;
}

absl::StatusOr<std::span<const std::byte>> ArenaLayout::RecordIn(std::span<const std::byte> arena, int64_t layer,
                                                                 int64_t expert) const {
  if (arena.size() < static_cast<size_t>(bytes_)) {
    return InvalidArgument("the arena holds %d bytes, want %d", arena.size(), bytes_);
  }
  ASSIGN_OR_RETURN(const int64_t offset, OffsetOf(layer, expert));
  return arena.subspan(offset, layers_[layer].bytes);
}

}  // namespace ferry
