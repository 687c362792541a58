#include "kernels/cuda/batch_attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_views.h"
#include "kernels/cuda/latent_attention.h"

namespace ferry::cuda {
namespace {

// A sequence with more rows than this goes through the prefill kernel. It depends on the sequence's rows in the batch
// and not on those of a call, so that cutting a layer into chunks leaves the bits alone.
constexpr int64_t kMaxDecodeRows = 8;

int64_t NumHeads(const BatchAttention& call) { return call.q.cols / call.cache.head_dim; }

// The arguments of a launch for rows [first, end) of the batch.
AttentionArgs ArgsOf(const BatchAttention& call, int64_t first, int64_t end) {
  AttentionArgs args;
  args.q = RowsOf(call.q.Rows(first - call.first_row, end - first));
  args.out = RowsOf(call.out.Rows(first - call.first_row, end - first));
  args.cache = KvOf(call.cache);
  args.num_heads = NumHeads(call);
  args.scale = static_cast<float>(call.params.scale);
  args.latent_values = call.cache.latent_values;
  args.window = call.params.window;
  args.sinks = call.params.sinks;
  args.warpgroups = call.warpgroups;
  return args;
}

// Rows [first, end) of the batch, all of sequence `number`.
absl::Status QueuePrefill(const BatchAttention& call, size_t number, int64_t first, int64_t end, ComputeQueue& queue) {
  const BatchSequence& sequence = call.batch.host().sequences[number];
  const auto& table = call.cache.ring ? sequence.ring_blocks : sequence.blocks;
  const auto launch = call.cache.latent_values > 0 ? LaunchLatentPrefill : LaunchAttentionPrefill;
  return queue.Queued(
      "Attention (prefill)",
      launch(ArgsOf(call, first, end), sequence.first_position + first - sequence.first_row,
             call.batch.table(static_cast<int64_t>(number), call.cache.ring), static_cast<int64_t>(table.size()), queue.get()));
}

// Rows [first, end) of the batch, at positions up to `max_position`.
absl::Status QueueDecode(const BatchAttention& call, int64_t first, int64_t end, int64_t max_position, ComputeQueue& queue,
                         Workspace& workspace) {
  const bool latent = call.cache.latent_values > 0;
  const auto bytes_of = [&](int64_t rows) {
    if (latent)
      return LatentDecodeWorkspaceBytes(rows, NumHeads(call), call.cache.latent_values, call.params.window, max_position);
    return DecodeWorkspaceBytes(rows, NumHeads(call), call.cache.head_dim, call.params.window, max_position);
  };
  const auto launch = latent ? LaunchLatentDecode : LaunchAttentionDecode;
  const int64_t rows_at_once = std::clamp<int64_t>(kWorkspaceBytes / bytes_of(1), 1, 32768);
  for (int64_t row = first; row < end; row += rows_at_once) {
    const int64_t row_end = std::min(end, row + rows_at_once);
    ASSIGN_OR_RETURN(std::byte * memory, workspace.Reserve(bytes_of(row_end - row)));
    RETURN_IF_ERROR(queue.Queued("Attention (decode)", launch(ArgsOf(call, row, row_end), call.batch.places(row, call.cache.ring),
                                                              max_position, memory, queue.get())));
  }
  return absl::OkStatus();
}

}  // namespace

// Neighbouring sequences of few rows share a launch; every other one has its own.
absl::Status QueueAttention(const BatchAttention& call, ComputeQueue& queue, Workspace& workspace) {
  const std::vector<BatchSequence>& sequences = call.batch.host().sequences;
  const int64_t end_row = call.first_row + call.q.rows;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t first = std::max(call.first_row, sequences[s].first_row);
    int64_t end = std::min(end_row, sequences[s].first_row + sequences[s].num_rows);
    if (first >= end) continue;
    if (sequences[s].num_rows > kMaxDecodeRows) {
      RETURN_IF_ERROR(QueuePrefill(call, s, first, end, queue));
      continue;
    }
    int64_t max_position = sequences[s].first_position + sequences[s].num_rows - 1;
    while (s + 1 < sequences.size() && sequences[s + 1].num_rows <= kMaxDecodeRows && sequences[s + 1].first_row < end_row) {
      ++s;
      end = std::min(end_row, sequences[s].first_row + sequences[s].num_rows);
      max_position = std::max(max_position, sequences[s].first_position + sequences[s].num_rows - 1);
    }
    RETURN_IF_ERROR(QueueDecode(call, first, end, max_position, queue, workspace));
  }
  return absl::OkStatus();
}

}  // namespace ferry::cuda
