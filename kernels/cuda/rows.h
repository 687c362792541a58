#pragma once

// Operations that read or write whole rows once: embedding, RMS norm, the weighted sum of experts, gather and scatter; and
// the way of small host arrays to the device.
// All are bound by device memory; every row's bits depend on that row alone.

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

// x[i] = row token_ids[i] of `table`. token_ids [x.rows], each in [0, table.rows); x F32 or an activation type, x.cols
// equal to table.cols.
cudaError_t LaunchEmbed(const DeviceTiles& table, const int32_t* token_ids, const DeviceRows& x, cudaStream_t stream);

// out = x / sqrt(mean(x^2) + epsilon) * weight; the sum of squares in F32, in an order that depends on the columns
// alone. weight F32 [cols]; x and out of any element type.
cudaError_t LaunchRmsNorm(const DeviceRows& x, const float* weight, float epsilon, const DeviceRows& out, cudaStream_t stream);

// out = (clamp(up, -limit, limit) + up_offset) * g * sigmoid(alpha * g) with g = min(gate, limit), element by element. gate and
// up F32 of one shape, out an activation type.
struct GluArgs {
  DeviceRows gate, up, out;
  float alpha = 1, limit = 0, up_offset = 0;
};
cudaError_t LaunchGlu(const GluArgs& args, cudaStream_t stream);

// x *= sigmoid(gate), element by element, or row by row with a gate of one column. gate F32, x an activation type.
cudaError_t LaunchMultiplyBySigmoid(const DeviceRows& gate, const DeviceRows& x, cudaStream_t stream);

// out = in, with zeros in the columns that `in` lacks. Both of one activation type.
cudaError_t LaunchPadRows(const DeviceRows& in, const DeviceRows& out, cudaStream_t stream);

// x[t] += sum over rank r, in order, of weights[t, r] * contributions[t * top_k + r]. weights [x.rows, top_k]; x F32.
cudaError_t LaunchCombine(const DeviceRows& contributions, const float* weights, int64_t top_k, const DeviceRows& x,
                          cudaStream_t stream);

// out[i] = in[rows[i]]; rows [out.rows], each in [0, in.rows); in and out of one type and width.
cudaError_t LaunchGatherRows(const DeviceRows& in, const int32_t* rows, const DeviceRows& out, cudaStream_t stream);

// out[i] = in[rows[i]] in F32, [num_rows, in.cols] without gaps, in memory that the device can write (pinned host memory too). in
// of any element type; rows [num_rows], each in [0, in.rows).
cudaError_t LaunchGatherFloats(const DeviceRows& in, const int32_t* rows, int64_t num_rows, float* out, cudaStream_t stream);

// out[outs[i]] = rows[i], rounded to out's type. rows [num_rows, out.cols] F32 without gaps, in memory that the device
// can read (pinned host memory too: each element is read once); outs [num_rows], each in [0, out.rows), without
// repeats.
cudaError_t LaunchScatterRows(const float* rows, const int32_t* outs, int64_t num_rows, const DeviceRows& out,
                              cudaStream_t stream);

// dst = `bytes` of src, one of them pinned host memory, by the kernel itself. Not the copy engine's work: its copies run in the
// order in which all streams queued them, so that a table of some kilobytes would wait for every expert queued before it (10 ms
// for 38 of them, measured), and with it the compute stream; and a few kilobytes are with the host 6 us sooner.
cudaError_t LaunchCopy(void* dst, const void* src, int64_t bytes, cudaStream_t stream);
// Many such copies, whose places and bytes are multiples of kCopyWordBytes and which lie apart. `copies` is memory that the
// device reads: pinned, or its own.
struct DeviceCopy {
  std::byte* to;
  const std::byte* from;
  int64_t bytes;
};
inline constexpr int64_t kCopyWordBytes = 16;
cudaError_t LaunchCopies(const DeviceCopy* copies, int64_t count, cudaStream_t stream);
// Copies a few kilobytes to pinned host memory, then sets *signal, which is pinned host memory too, to `value`.
cudaError_t LaunchCopyAndSignal(void* dst, const void* src, int64_t bytes, uint32_t* signal, uint32_t value, cudaStream_t stream);

}  // namespace ferry::cuda
