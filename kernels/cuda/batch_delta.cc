#include "kernels/cuda/batch_delta.h"

#include <algorithm>

#include "kernels/cuda/delta_net.h"
#include "kernels/cuda/device_views.h"

namespace ferry::cuda {

static_assert(kDeltaGroup == kDeltaColumns && kDeltaRootEpsilon == static_cast<float>(kDeltaEpsilon));

absl::Status QueueGatedDelta(const BatchDelta& call, ComputeQueue& queue, Workspace& workspace) {
  const AttentionConfig& net = call.net;
  if (!DeltaNetSupportsHeadDim(net.head_dim)) {
    return Unimplemented("gated delta nets with heads of %d; CUDA takes 16, 32, 48, 64, 96, 128 and 256", net.head_dim);
  }
  const auto bytes_of = [&](int64_t rows) { return DeltaNetWorkspaceBytes(rows, net.num_kv_heads, net.num_heads, net.head_dim); };
  const int64_t rows_at_once = std::clamp<int64_t>(kWorkspaceBytes / bytes_of(1), 1, 1 << 20);
  const std::vector<BatchSequence>& sequences = call.batch.host().sequences;
  const auto sequence_of = [&](int64_t row) {  // the last one that begins at or before the batch's row
    const auto after = std::upper_bound(sequences.begin(), sequences.end(), row,
                                        [](int64_t of, const BatchSequence& sequence) { return of < sequence.first_row; });
    return after - sequences.begin() - 1;
  };
  for (int64_t first = 0; first < call.out.rows; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, call.out.rows - first), batch_row = call.first_row + first;
    const int64_t first_sequence = sequence_of(batch_row), last_sequence = sequence_of(batch_row + rows - 1);
    const DeltaNetArgs args = {.mixed = RowsOf(call.inputs.mixed.Rows(first, rows)),
                               .gate = RowsOf(call.inputs.gate.Rows(first, rows)),
                               .beta = RowsOf(call.inputs.beta.Rows(first, rows)),
                               .alpha = RowsOf(call.inputs.alpha.Rows(first, rows)),
                               .out = RowsOf(call.out.Rows(first, rows)),
                               .conv = call.weights.conv,
                               .time_bias = call.weights.time_bias,
                               .decay = call.weights.decay,
                               .norm = call.weights.norm,
                               .epsilon = static_cast<float>(call.weights.epsilon),
                               .num_key_heads = static_cast<int>(net.num_kv_heads),
                               .num_heads = static_cast<int>(net.num_heads),
                               .head_dim = static_cast<int>(net.head_dim),
                               .conv_taps = static_cast<int>(net.conv_taps),
                               .tiled_heads = net.tiled_heads,
                               .states = call.states.data,
                               .slot_numbers = DeltaStateNumbers(net),
                               .sequences = call.batch.sequences(),
                               .first_sequence = first_sequence,
                               .num_sequences = last_sequence - first_sequence + 1,
                               .row_sequences = call.batch.row_sequences(batch_row),
                               .first_row = batch_row};
    ASSIGN_OR_RETURN(std::byte * memory, workspace.Reserve(bytes_of(rows)));
    RETURN_IF_ERROR(queue.Queued("GatedDelta", LaunchDeltaNet(args, memory, queue.get())));
  }
  return absl::OkStatus();
}

}  // namespace ferry::cuda
