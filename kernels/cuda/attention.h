#pragma once

// Causal attention over the block KV cache (ops.h, Attention). Both kernels read F16 keys and values (Q8_0 is widened while
// it is loaded), round the queries to F16, multiply on tensor cores and sum in F32; the softmax is F32 in base 2.
//
//   prefill  many rows of one sequence: tiles of 128 (row, query head of one kv head) pairs walk the keys once
//   decode   few rows of any sequences: the keys of a row are cut at multiples of DecodeSplitKeys() positions, every cut is
//            one block's work, and a second kernel joins the cuts in order
//
// A row's bits depend on its position, its keys and the choice of the kernel: not on its neighbours, on how many rows the
// call has, or on the tile it falls into.

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope_store.h"

namespace ferry::cuda {

struct AttentionArgs {
  DeviceRows q, out;   // [rows, heads * head_dim], an activation type, 16-byte aligned, stride a multiple of 8
  DeviceKv cache;      // head_dim 32, 64 or 128
  int64_t num_heads = 0;
  int64_t window = 0;            // 0: all keys
  const float* sinks = nullptr;  // [heads] or null
};

bool AttentionSupportsHeadDim(int64_t head_dim);

// Rows of one sequence at positions [first_position, first_position + q.rows). table: its blocks, on the device.
cudaError_t LaunchAttentionPrefill(const AttentionArgs& args, int64_t first_position, const int32_t* table,
                                   int64_t table_size, cudaStream_t stream);

// Rows of any sequences. places: of q's first row on; max_position: the largest position among the rows.
// workspace: DecodeWorkspaceBytes(...), 16-byte aligned.
cudaError_t LaunchAttentionDecode(const AttentionArgs& args, const DevicePlaces& places, int64_t max_position, void* workspace,
                                  cudaStream_t stream);
int64_t DecodeWorkspaceBytes(int64_t rows, int64_t num_heads, int64_t head_dim, int64_t window, int64_t max_position);

}  // namespace ferry::cuda
