#pragma once

// Causal attention over the block KV cache (ops.h, Attention). Keys and values are read in F16 (Q8_0 is widened while it
// is loaded), queries are rounded to F16; products run on tensor cores with F32 sums, the softmax in F32 and base 2.
//
//   prefill  many rows of one sequence: a block takes 128 or 192 (row, query head of one kv head) pairs, which share the
//            tiles of keys that it walks
//   decode   few rows of any sequences: the keys of a row are cut at multiples of 128 positions (64 for 128 dimensions, 32 for
//            256), every cut is one block's work, and a second kernel joins the cuts in order
//
// A row's bits depend on its position, its keys and the choice of the kernel: not on its neighbours, on how many rows
// the call has, or on the block it falls into.

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope_store.h"

namespace ferry::cuda {

struct AttentionArgs {
  DeviceRows q, out;  // [rows, heads * head_dim], an activation type, 16-byte aligned, stride a multiple of 8
  DeviceKv cache;     // head_dim 32, 64, 128 or 256
  int64_t num_heads = 0;
  float scale = 1;               // of scores
  int64_t latent_values = 0;     // above 0: latent_attention.h
  int64_t window = 0;            // 0: all keys
  const float* sinks = nullptr;  // [heads] or null
  bool warpgroups = false;       // the GPU and the build have warpgroup products (ProductDevice::wgmma)
};

// Whether the kernels take heads of that size on the current device: 256 need more shared memory than capability 7.5 has.
bool AttentionSupportsHeadDim(int64_t head_dim);

// Rows of one sequence at positions [first_position, first_position + q.rows). table: its blocks, on the device.
cudaError_t LaunchAttentionPrefill(const AttentionArgs& args, int64_t first_position, const int32_t* table, int64_t table_size,
                                   cudaStream_t stream);

// Rows of any sequences. places: of q's first row on; max_position: the largest position among the rows.
// workspace: DecodeWorkspaceBytes(...), 16-byte aligned.
cudaError_t LaunchAttentionDecode(const AttentionArgs& args, const DevicePlaces& places, int64_t max_position, void* workspace,
                                  cudaStream_t stream);
int64_t DecodeWorkspaceBytes(int64_t rows, int64_t num_heads, int64_t head_dim, int64_t window, int64_t max_position);

}  // namespace ferry::cuda
