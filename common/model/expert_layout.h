#pragma once

// The layout of experts in the host's memory. No other file computes a size or an offset of an expert record there; in a GPU's
// memory a record lies in a slot (worker/expert_cache.h).
//
// A record holds one expert: gate, up and down in the tiled layout, then their biases (f32, padded to whole tiles with zeros).
// Every region begins on 128 bytes, and the record is a multiple of 4 KiB. It is contiguous, so one copy moves an expert.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/model/tiled_layout.h"

namespace ferry {

inline constexpr int64_t kRecordAlignment = 4096;

struct ExpertLayout {
  TiledLayout gate, up;  // [n_ff, n_embd]
  TiledLayout down;      // [n_embd, n_ff]
  bool has_bias = false;
  int64_t gate_offset = 0, up_offset = 0, down_offset = 0;                 // bytes from the start of the record
  int64_t gate_bias_offset = 0, up_bias_offset = 0, down_bias_offset = 0;  // valid with has_bias
  int64_t bytes = 0;                                                       // of a record, a multiple of kRecordAlignment

  // InvalidArgument as of TiledLayout::Create, with the name of the matrix.
  static absl::StatusOr<ExpertLayout> Create(DType gate, DType up, DType down, int64_t n_embd, int64_t n_ff, bool has_bias);

  TiledMatrix Gate(const std::byte* record) const { return {gate, record + gate_offset}; }
  TiledMatrix Up(const std::byte* record) const { return {up, record + up_offset}; }
  TiledMatrix Down(const std::byte* record) const { return {down, record + down_offset}; }
  // Biases [n_ff], [n_ff], [n_embd]; null without has_bias.
  const float* GateBias(const std::byte* record) const { return Bias(record, gate_bias_offset); }
  const float* UpBias(const std::byte* record) const { return Bias(record, up_bias_offset); }
  const float* DownBias(const std::byte* record) const { return Bias(record, down_bias_offset); }

  // Multiplications and additions of one token through the expert: 2 * 3 * n_embd * n_ff.
  int64_t flops_per_token() const { return 2 * (gate.rows * gate.cols + up.rows * up.cols + down.rows * down.cols); }

  bool operator==(const ExpertLayout&) const = default;

 private:
  const float* Bias(const std::byte* record, int64_t offset) const {
    return has_bias ? reinterpret_cast<const float*>(record + offset) : nullptr;
  }
};

// The experts of a whole model, layer after layer: what the arena holds. Layers may differ in type, and some may have none: those
// have an entry of no bytes.
class ArenaLayout {
 public:
  ArenaLayout() = default;
  // InvalidArgument: no layer with experts, or num_experts not in [1, kMaxExperts].
  static absl::StatusOr<ArenaLayout> Create(std::vector<std::optional<ExpertLayout>> layers, int64_t num_experts);

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t num_experts() const { return num_experts_; }  // of each layer that has some
  int64_t bytes() const { return bytes_; }
  bool HasExperts(int64_t layer) const { return has_experts_[layer]; }
  // The first layer from `layer` on, below `end`, that has experts; `end` where there is none.
  int64_t NextWithExperts(int64_t layer, int64_t end) const;
  int64_t FirstWithExperts() const { return NextWithExperts(0, num_layers()); }
  // Experts of the layers [first, end) together.
  int64_t num_records(int64_t first, int64_t end) const;
  int64_t num_records() const { return num_records(0, num_layers()); }
  // Of a layer without experts: one of no bytes.
  const ExpertLayout& layer(int64_t layer) const { return layers_[layer]; }
  int64_t max_record_bytes() const { return max_record_bytes_; }

  // Byte offset of a record. InvalidArgument names an index out of range and its range; every build checks it, since a wrong
  // offset would read another record.
  absl::StatusOr<int64_t> OffsetOf(int64_t layer, int64_t expert) const;
  // The record inside `arena`, which has bytes() bytes. InvalidArgument: as OffsetOf, or the arena is too short.
  absl::StatusOr<std::span<const std::byte>> RecordIn(std::span<const std::byte> arena, int64_t layer, int64_t expert) const;

 private:
  std::vector<ExpertLayout> layers_;
  std::vector<bool> has_experts_;
  std::vector<int64_t> layer_offsets_;
  int64_t num_experts_ = 0;
  int64_t bytes_ = 0;
  int64_t max_record_bytes_ = 0;
};

}  // namespace ferry
