#pragma once

// The gated delta net of kernels/gated_delta.h. A row of the convolution needs rows before it alone, so all rows go at once; the
// recurrence goes row by row, a block for every 16 columns of the state of a value head of a sequence, which stay in registers
// from the sequence's first row of the call to its last; norm and gate go all at once again.
//
// A row's bits depend on that row and those before it: not on other sequences, nor on how a prompt was cut into calls.

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

inline constexpr int kDeltaGroup = 16;             // columns of a state that lie together: kDeltaColumns
inline constexpr float kDeltaRootEpsilon = 1e-6f;  // kDeltaEpsilon

// The rows of one sequence in a batch, as the device reads them (CudaBatch).
struct DeviceSequence {
  int32_t first_row = 0, num_rows = 0, first_position = 0, slot = 0;
};

struct DeltaNetArgs {
  DeviceRows mixed, gate, beta, alpha;  // F32
  DeviceRows out;                       // an activation type
  const float* conv = nullptr;
  const float* time_bias = nullptr;
  const float* decay = nullptr;
  const float* norm = nullptr;
  float epsilon = 0;
  int num_key_heads = 0, num_heads = 0, head_dim = 0, conv_taps = 0;
  bool tiled_heads = false;
  float* states = nullptr;
  int64_t slot_numbers = 0;                       // DeltaStateNumbers
  const DeviceSequence* sequences = nullptr;      // device: of the whole batch
  int64_t first_sequence = 0, num_sequences = 0;  // those with rows in the call
  const int32_t* row_sequences = nullptr;         // device, [out.rows]: index in `sequences` of each row's
  int64_t first_row = 0;                          // in the batch, of row 0
};

// Whether there are kernels for heads of that size.
bool DeltaNetSupportsHeadDim(int64_t head_dim);
// workspace: DeltaNetWorkspaceBytes(rows, ...), on 256 bytes.
int64_t DeltaNetWorkspaceBytes(int64_t rows, int64_t num_key_heads, int64_t num_heads, int64_t head_dim);
cudaError_t LaunchDeltaNet(const DeltaNetArgs& args, void* workspace, cudaStream_t stream);

}  // namespace ferry::cuda
