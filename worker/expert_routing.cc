#include "worker/expert_routing.h"

#include <algorithm>

#include "worker/host_rows.h"

namespace ferry {
namespace {

constexpr int64_t kGroupsAlign = 64;  // elements: each part of the groups begins on 256 bytes

int64_t AlignedUp(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

int64_t GroupElements(int64_t num_experts, int64_t entries) {
  return AlignedUp(num_experts + 1, kGroupsAlign) + 2 * AlignedUp(entries, kGroupsAlign);
}

}  // namespace

int64_t ExpertRouting::BytesOf(const RouterConfig& config, int64_t max_rows) {
  const int64_t entries = max_rows * config.top_k;
  return entries * (sizeof(int32_t) + sizeof(float)) + GroupElements(config.num_experts, entries) * sizeof(int32_t);
}

absl::StatusOr<std::unique_ptr<ExpertRouting>> ExpertRouting::Create(Ops* ops, const RouterConfig& config, int64_t max_rows) {
  std::unique_ptr<ExpertRouting> routing(new ExpertRouting(ops, config));
  const int64_t entries = max_rows * config.top_k;
  ASSIGN_OR_RETURN(routing->chosen_, ops->Allocate(entries * sizeof(int32_t)));
  ASSIGN_OR_RETURN(routing->weights_, ops->Allocate(entries * sizeof(float)));
  ASSIGN_OR_RETURN(routing->memory_, ops->Allocate(GroupElements(config.num_experts, entries) * sizeof(int32_t)));
  return routing;
}

// Entries of a small step are downloaded with the counts: the host computes a share of most such steps, and a second wait for
// the device costs more than the bytes.
bool ExpertRouting::entries_come_along() const { return rows_ <= HostRows::kMaxRowsAhead; }

absl::Status ExpertRouting::Queue(const RouterWeights& router, Tensor in) {
  const int64_t entries = in.rows * config_.top_k;
  const int64_t rows_begin = AlignedUp(config_.num_experts + 1, kGroupsAlign);
  const int64_t outs_begin = rows_begin + AlignedUp(entries, kGroupsAlign);
  int32_t* const groups = memory_.as<int32_t>();
  rows_ = in.rows;
  groups_ = {.num_groups = config_.num_experts,
             .num_entries = entries,
             .offsets = groups,
             .rows = groups + rows_begin,
             .outs = groups + outs_begin};
  downloaded_.resize(outs_begin + entries);
  RETURN_IF_ERROR(ops_.Route(in, router, config_, chosen_.as<int32_t>(), weights_.as<float>()));
  return ops_.GroupByExpert(chosen_.as<int32_t>(), in.rows, config_.top_k, config_.num_experts, groups, groups + rows_begin,
                            groups + outs_begin);
}

absl::Status ExpertRouting::Read(int64_t layer) {
  const std::span<int32_t> offsets = std::span(downloaded_).first(config_.num_experts + 1);
  const std::span<int32_t> asked = entries_come_along() ? std::span(downloaded_) : offsets;
  RETURN_IF_ERROR(ops_.Download(std::as_writable_bytes(asked), groups_.offsets));
  // Numbers read back from a device become indices here, so they are held to their ranges first.
  if (offsets.front() != 0 || offsets.back() != groups_.num_entries || !std::is_sorted(offsets.begin(), offsets.end())) {
    return Internal("routing of layer %d: offsets go from %d to %d, want increasing from 0 to %d", layer, offsets.front(),
                    offsets.back(), groups_.num_entries);
  }
  tokens_.resize(config_.num_experts);
  for (int64_t expert = 0; expert < config_.num_experts; ++expert) tokens_[expert] = offsets[expert + 1] - offsets[expert];
  return absl::OkStatus();
}

absl::StatusOr<HostGroups> ExpertRouting::ReadEntries(int64_t layer) {
  const int64_t entries = groups_.num_entries;
  const int64_t rows_begin = groups_.rows - groups_.offsets, outs_begin = groups_.outs - groups_.offsets;
  const std::span<int32_t> both = std::span(downloaded_).subspan(rows_begin, outs_begin - rows_begin + entries);
  if (!entries_come_along()) RETURN_IF_ERROR(ops_.Download(std::as_writable_bytes(both), groups_.rows));
  const std::span<const int32_t> rows = both.first(entries), outs = both.last(entries);
  for (int64_t i = 0; i < entries; ++i) {
    if (rows[i] < 0 || rows[i] >= rows_) {
      return Internal("routing of layer %d: row of entry %d is %d, want 0 to %d", layer, i, rows[i], rows_ - 1);
    }
    if (outs[i] < 0 || outs[i] >= entries) {
      return Internal("routing of layer %d: out of entry %d is %d, want 0 to %d", layer, i, outs[i], entries - 1);
    }
  }
  return HostGroups{.offsets = std::span(downloaded_).first(config_.num_experts + 1), .rows = rows, .outs = outs};
}

}  // namespace ferry
