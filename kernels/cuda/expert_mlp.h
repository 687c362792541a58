#pragma once

// The experts of a layer, computed straight from their records (common/model/expert_layout.h) in device memory:
//
//   for each use, each entry i in [offsets[group], offsets[group + 1]):
//     h [n_ff], rounded to in_type     = glu(gate in[rows[i]] + gate_bias, up in[rows[i]] + up_bias)
//     contributions[outs[i]] [n_embd]  = down h + down_bias
//   glu(g, u) = (clamp(u, -limit, limit) + up_offset) * min(g, limit) * sigmoid(alpha * min(g, limit))
//
// Two steps a call (one batch of uses): gate, up, biases and SwiGLU into the workspace; down and bias into
// contributions. A step is one launch for each of the kernels of products.h that its groups' sizes call for, or a few with
// expanded weights. Rows are gathered by index while they are loaded. An expert's results depend on its record, its rows, and on
// whether its group has more than device.few_rows_expert rows; not on the other uses of the call, nor on which call it is in.
// Rounding of weights: see tiled_gemm.h.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/model/dtype.h"
#include "kernels/cuda/product_device.h"
#include "kernels/cuda/product_matrix.h"

namespace ferry::cuda {

// Where a record's parts lie, in bytes from its start: ExpertLayout without its Status-returning parts.
struct ExpertShape {
  int64_t n_embd = 0, n_ff = 0;  // multiples of 32
  ProductMatrix gate, up, down;  // up after gate, as ExpertLayout has them
};

struct ExpertMlpUse {
  const void* record = nullptr;  // device memory, 128-byte aligned
  int32_t group = 0;
  int32_t num_rows = 0;  // of the group; entries beyond it are not computed, rows beyond the group's end are skipped
};

struct ExpertMlpArgs {
  ExpertShape shape;
  const ExpertMlpUse* uses = nullptr;  // host memory, free on return; uses without rows are skipped
  int64_t num_uses = 0;
  const int32_t* offsets = nullptr;  // device: [groups + 1]
  const int32_t* rows = nullptr;     // device: [entries] row of `in`; null: entry i is row i
  const int32_t* outs = nullptr;     // device: [entries] row of `contributions`; null: entry i is row i
  const void* in = nullptr;          // [in_rows, n_embd], 16-byte aligned, in_stride a multiple of 8
  DType in_type = DType::kBF16;      // BF16, or F16
  int64_t in_rows = 0, in_stride = 0;
  void* contributions = nullptr;  // [out_rows, n_embd]
  DType out_type = DType::kBF16;  // F32, or in_type
  int64_t out_rows = 0, out_stride = 0;
  float alpha = 1.702f, limit = 7.0f, up_offset = 1.0f;
  void* workspace = nullptr;  // device, 256-byte aligned
  int64_t workspace_bytes = 0;
  Expansion expansion;  // of ExpertExpansionBytes at least, where that is not 0
};

// Bytes of workspace for uses whose num_rows sum to `rows`. A smaller workspace is enough if the largest single use
// fits: the call then runs in several batches.
int64_t ExpertMlpWorkspaceBytes(const ExpertShape& shape, int64_t rows);

// The least expansion for uses of at most `most_rows` rows: 0 when every type is decoded on the way.
int64_t ExpertExpansionBytes(const ProductDevice& device, const ExpertShape& shape, DType act_type, int64_t most_rows);

// Queues the experts on `stream`. An entry whose `outs` lies outside out_rows writes nothing; one whose `rows` lies
// outside in_rows reads nothing there, and its contribution means nothing. Null, or static text: "argument ..." is the
// caller's mistake, anything else is CUDA's. May be captured in a graph.
const char* ExpertMlp(const ProductDevice& device, const ExpertMlpArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
