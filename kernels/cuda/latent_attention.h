#pragma once

// Causal attention over a latent cache (ops.h, Attention with KvLayer::latent_values): all query heads read one key a token, and
// its first numbers are the value too. A block of threads multiplies 64 or 16 (row, query head) pairs with a tile of keys that
// it has loaded once. Keys are read in F16 (Q8_0 is widened in shared memory), queries are rounded to F16; products run on tensor
// cores with F32 sums, the softmax in F32 and base 2.
//
//   prefill  rows of one sequence: a block takes 64 pairs and walks all of their keys
//   decode   rows of any sequences: a block takes one row's heads and one of the row's cuts (latent_cuts.h); a second kernel
//            joins the cuts (join_cuts.cuh)
//
// Decode of fewer than 48 heads over F16 keys of 576 numbers has a kernel of its own (latent_few_heads.cu).
// A row's bits depend on its position, its keys, the number of heads and the choice between prefill and decode.

#include "kernels/cuda/attention.h"

namespace ferry::cuda {

inline constexpr int kMaxLatentValues = 512;

// Null, or what the kernels lack for such a cache on the current device: sizes that are no multiples of 16, more than
// kMaxLatentValues values, more shared memory than a block can have. Static text.
const char* LatentAttentionLacks(int64_t key_dim, int64_t values, DType cache_type);

// AttentionArgs::latent_values is above 0. Otherwise as LaunchAttentionPrefill and LaunchAttentionDecode (attention.h).
cudaError_t LaunchLatentPrefill(const AttentionArgs& args, int64_t first_position, const int32_t* table, int64_t table_size,
                                cudaStream_t stream);
cudaError_t LaunchLatentDecode(const AttentionArgs& args, const DevicePlaces& places, int64_t max_position, void* workspace,
                               cudaStream_t stream);
int64_t LatentDecodeWorkspaceBytes(int64_t rows, int64_t num_heads, int64_t values, int64_t window, int64_t max_position);

}  // namespace ferry::cuda
