#include <type_traits>

#include "kernels/cuda/delta_net.h"
#include "kernels/cuda/device_code.cuh"

namespace ferry::cuda {
namespace {

constexpr int kColumns = kDeltaGroup;  // of the state, of a block
constexpr int kSlices = 8;             // lanes that share a column: each has an eighth of its rows
constexpr int kWarpColumns = kWarpSize / kSlices;
constexpr int kThreads = kColumns / kWarpColumns * kWarpSize;
constexpr int kKeepThreads = 256, kOutWarps = 4;

// What the launches leave each other, [rows] of each.
struct Inner {
  float* made;    // [channels]: queries and keys with their norms, values
  float* summed;  // [num_heads * head_dim]: S' q
  float2* gates;  // [num_heads]: what S is multiplied with, and the share of the difference
};

struct Params {
  DeltaNetArgs net;
  Inner inner;
  int channels, kv_size;
};

// The rows of a sequence in this call.
struct Segment {
  int first, count, position, slot;  // first: row of the call
};
__device__ inline Segment SegmentOf(const DeltaNetArgs& net, int64_t sequence) {
  const DeviceSequence whole = net.sequences[sequence];
  const int64_t begin = max(static_cast<int64_t>(whole.first_row), net.first_row);
  const int64_t end = min(static_cast<int64_t>(whole.first_row) + whole.num_rows, net.first_row + net.out.rows);
  return {static_cast<int>(begin - net.first_row), static_cast<int>(end - begin),
          whole.first_position + static_cast<int>(begin - whole.first_row), whole.slot};
}

__device__ inline float Silu(float x) { return x / (1.0f + expf(-x)); }

// Channel `channel` of row `row` of `mixed`, or, for the taps - 1 rows before the segment, of the rows kept in the state.
__device__ inline float MixedAt(const Params& p, const Segment& segment, int row, int channel) {
  if (row >= segment.first) return static_cast<const float*>(p.net.mixed.data)[row * p.net.mixed.stride + channel];
  if (segment.position == 0) return 0.0f;  // nothing was before: what the slot holds is another sequence's
  const int kept = p.net.conv_taps - 1 - (segment.first - row);
  return p.net.states[segment.slot * p.net.slot_numbers + static_cast<int64_t>(kept) * p.channels + channel];
}

// Grid: [rows, key heads of queries and of keys, value heads, and one for the gates]. Block: head_dim threads, a channel each.
// Bound: rows * channels * 8 bytes through device memory; the taps' rows are read again from cache.
__global__ void MixKernel(Params p) {
  __shared__ float scratch[kWarpSize];
  const DeltaNetArgs& net = p.net;
  const int row = blockIdx.x, head = blockIdx.y, num_made = 2 * net.num_key_heads + net.num_heads;
  if (head == num_made) {
    const float* const alpha = static_cast<const float*>(net.alpha.data) + row * net.alpha.stride;
    const float* const beta = static_cast<const float*>(net.beta.data) + row * net.beta.stride;
    for (int h = threadIdx.x; h < net.num_heads; h += blockDim.x) {
      const float x = alpha[h] + net.time_bias[h];
      const float softplus = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
      p.inner.gates[static_cast<int64_t>(row) * net.num_heads + h] =
          float2{expf(net.decay[h] * softplus), 1.0f / (1.0f + expf(-beta[h]))};
    }
    return;
  }
  const Segment segment = SegmentOf(net, net.row_sequences[row]);
  const bool active = static_cast<int>(threadIdx.x) < net.head_dim;
  const int channel = head * net.head_dim + threadIdx.x;
  float made = 0.0f;
  if (active) {
    for (int tap = 0; tap < net.conv_taps; ++tap) {
      made = fmaf(net.conv[static_cast<int64_t>(tap) * p.channels + channel],
                  MixedAt(p, segment, row - (net.conv_taps - 1 - tap), channel), made);
    }
    made = Silu(made);
  }
  if (head < 2 * net.num_key_heads) {
    const float squares = BlockSum(made * made, scratch);
    made /= sqrtf(squares + kDeltaRootEpsilon);
    if (head < net.num_key_heads) made /= sqrtf(static_cast<float>(net.head_dim));
  }
  if (active) p.inner.made[static_cast<int64_t>(row) * p.channels + channel] = made;
}

// The segment's last rows of `mixed`, for the next call. Grid: [ceil(channels / kKeepThreads), sequences]. Block: kKeepThreads, a
// channel each: it reads a kept row before it overwrites it, since the rows move towards the older ones.
// Bound: taps * channels * 8 bytes a sequence.
__global__ void __launch_bounds__(kKeepThreads) KeepKernel(Params p) {
  const int channel = static_cast<int>(blockIdx.x) * kKeepThreads + static_cast<int>(threadIdx.x);
  if (channel >= p.channels) return;
  const Segment segment = SegmentOf(p.net, p.net.first_sequence + blockIdx.y);
  if (segment.count <= 0) return;
  float* const kept = p.net.states + segment.slot * p.net.slot_numbers + channel;
  const int before = p.net.conv_taps - 1;
  for (int i = 0; i < before; ++i) {
    kept[static_cast<int64_t>(i) * p.channels] = MixedAt(p, segment, segment.first + segment.count - before + i, channel);
  }
}

// kCount neighbouring floats, an even number of them, on 8 bytes; with a multiple of four on 16.
template <int kCount>
__device__ __forceinline__ void LoadFloats(const float* source, float (&to)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(source + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float2 two = *reinterpret_cast<const float2*>(source + i);
      to[i] = two.x, to[i + 1] = two.y;
    }
  }
}

// a . b over the whole column: in four chains, then over the slices; the same in all lanes of the column.
template <int kCount>
__device__ __forceinline__ float ColumnDot(const float (&a)[kCount], const float (&b)[kCount]) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i % 4] = fmaf(a[i], b[i], sums[i % 4]);
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
  for (int offset = kWarpColumns; offset < kWarpSize; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

// Grid: [num_heads * head_dim / kColumns, sequences]. Block: a warp for kWarpColumns columns; lane l has column l % kWarpColumns
// of them, elements [kRows * s, kRows * (s + 1)) with s = l / kWarpColumns.
// Bound: the states' bytes, once in and once out; with many rows the chain from one to the next, some 200 cycles each.
template <int kRows>
__global__ void __launch_bounds__(kThreads) RecurrenceKernel(Params p) {
  constexpr int kDim = kRows * kSlices, kGroups = kDim / kColumns;
  const DeltaNetArgs& net = p.net;
  const int head = blockIdx.x / kGroups, group = blockIdx.x % kGroups;
  const int key_head = net.tiled_heads ? head % net.num_key_heads : head / (net.num_heads / net.num_key_heads);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int column = warp * kWarpColumns + lane % kWarpColumns, slice = lane / kWarpColumns;
  const Segment segment = SegmentOf(net, net.first_sequence + blockIdx.y);
  if (segment.count <= 0) return;
  float* const state = net.states + segment.slot * net.slot_numbers + static_cast<int64_t>(net.conv_taps - 1) * p.channels +
                       static_cast<int64_t>(head) * kDim * kDim + (group * kDim + slice * kRows) * kColumns + column;
  float s[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) s[i] = segment.position == 0 ? 0.0f : state[i * kColumns];

  const float* const made = p.inner.made + static_cast<int64_t>(segment.first) * p.channels;
  const float* const queries = made + key_head * kDim + slice * kRows;
  const float* const keys = queries + p.kv_size;
  const float* const values = made + 2 * p.kv_size + head * kDim + group * kColumns + column;
  const float2* const gates = p.inner.gates + static_cast<int64_t>(segment.first) * net.num_heads + head;
  float* const out =
      p.inner.summed + static_cast<int64_t>(segment.first) * net.num_heads * kDim + head * kDim + group * kColumns + column;
  float key[kRows], query[kRows], value = 0.0f;
  float2 gate = {0.0f, 0.0f};
  const auto load = [&](int row) {
    const int64_t at = static_cast<int64_t>(row) * p.channels;
    LoadFloats(keys + at, key);
    LoadFloats(queries + at, query);
    value = values[at];
    gate = gates[static_cast<int64_t>(row) * net.num_heads];
  };
  load(0);
  for (int row = 0; row < segment.count; ++row) {
    float k[kRows], q[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) k[i] = key[i], q[i] = query[i];
    const float v = value, decay = gate.x, share = gate.y;
    if (row + 1 < segment.count) load(row + 1);  // on its way while this row is computed
    const float difference = share * (v - decay * ColumnDot(k, s));
#pragma unroll
    for (int i = 0; i < kRows; ++i) s[i] = fmaf(k[i], difference, decay * s[i]);
    const float sum = ColumnDot(q, s);
    if (slice == 0) out[static_cast<int64_t>(row) * net.num_heads * kDim] = sum;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) state[i * kColumns] = s[i];
}

// Grid: [ceil(rows * num_heads / kOutWarps)]. Block: kOutWarps warps, a head of a row each.
// Bound: rows * num_heads * head_dim * 10 bytes.
template <typename Act>
__global__ void __launch_bounds__(kOutWarps* kWarpSize) GateKernel(Params p) {
  const DeltaNetArgs& net = p.net;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kOutWarps + threadIdx.x / kWarpSize;
  if (index >= net.out.rows * net.num_heads) return;
  const int64_t row = index / net.num_heads;
  const int head = static_cast<int>(index % net.num_heads), lane = threadIdx.x % kWarpSize;
  const float* const summed = p.inner.summed + index * net.head_dim;
  const float* const gate = static_cast<const float*>(net.gate.data) + row * net.gate.stride + head * net.head_dim;
  Act* const out = static_cast<Act*>(net.out.data) + row * net.out.stride + head * net.head_dim;
  float squares = 0.0f;
  for (int i = lane; i < net.head_dim; i += kWarpSize) squares = fmaf(summed[i], summed[i], squares);
  const float factor = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(net.head_dim) + net.epsilon);
  for (int i = lane; i < net.head_dim; i += kWarpSize) {
    out[i] = FromFloat<Act>(summed[i] * factor * net.norm[i] * Silu(gate[i]));
  }
}

// Calls f(std::integral_constant<int, head_dim>) for a head size that has kernels.
template <typename F>
cudaError_t WithDeltaHeadDim(int64_t head_dim, F&& f) {
  switch (head_dim) {
    case 16:
      return f(std::integral_constant<int, 16>{});
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 48:
      return f(std::integral_constant<int, 48>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 96:
      return f(std::integral_constant<int, 96>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    case 256:
      return f(std::integral_constant<int, 256>{});
    default:
      return cudaErrorInvalidValue;
  }
}

int64_t Channels(int64_t num_key_heads, int64_t num_heads, int64_t head_dim) {
  return (2 * num_key_heads + num_heads) * head_dim;
}

// Each part on 256 bytes.
struct InnerBytes {
  int64_t made, summed, gates;
};
InnerBytes InnerBytesOf(int64_t rows, int64_t num_key_heads, int64_t num_heads, int64_t head_dim) {
  return {AlignUp(rows * Channels(num_key_heads, num_heads, head_dim) * 4, 256), AlignUp(rows * num_heads * head_dim * 4, 256),
          AlignUp(rows * num_heads * 8, 256)};
}

}  // namespace

bool DeltaNetSupportsHeadDim(int64_t head_dim) {
  return WithDeltaHeadDim(head_dim, [](auto) { return cudaSuccess; }) == cudaSuccess;
}

int64_t DeltaNetWorkspaceBytes(int64_t rows, int64_t num_key_heads, int64_t num_heads, int64_t head_dim) {
  const InnerBytes bytes = InnerBytesOf(rows, num_key_heads, num_heads, head_dim);
  return bytes.made + bytes.summed + bytes.gates;
}

cudaError_t LaunchDeltaNet(const DeltaNetArgs& args, void* workspace, cudaStream_t stream) {
  if (args.out.rows == 0) return cudaSuccess;
  const int64_t channels = Channels(args.num_key_heads, args.num_heads, args.head_dim);
  if (!DeltaNetSupportsHeadDim(args.head_dim) || args.conv_taps < 2 || args.num_key_heads < 1 ||
      args.num_heads % args.num_key_heads != 0 || channels > 1 << 24 || args.out.rows > 1 << 24) {
    return cudaErrorInvalidValue;
  }
  const InnerBytes bytes = InnerBytesOf(args.out.rows, args.num_key_heads, args.num_heads, args.head_dim);
  std::byte* const memory = static_cast<std::byte*>(workspace);
  const Params p = {.net = args,
                    .inner = {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + bytes.made),
                              reinterpret_cast<float2*>(memory + bytes.made + bytes.summed)},
                    .channels = static_cast<int>(channels),
                    .kv_size = args.num_key_heads * args.head_dim};
  dim3 mix, keep, recurrence, gate;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.out.rows, 2 * args.num_key_heads + args.num_heads + 1, 1, &mix));
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(channels, kKeepThreads), args.num_sequences, 1, &keep));
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.num_heads * (args.head_dim / kColumns), args.num_sequences, 1, &recurrence));
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(args.out.rows * args.num_heads, kOutWarps), 1, 1, &gate));
  MixKernel<<<mix, static_cast<int>(AlignUp(args.head_dim, kWarpSize)), 0, stream>>>(p);
  FERRY_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  KeepKernel<<<keep, kKeepThreads, 0, stream>>>(p);
  FERRY_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  FERRY_CUDA_RETURN_IF_ERROR(WithDeltaHeadDim(args.head_dim, [&](auto head_dim) {
    RecurrenceKernel<head_dim() / kSlices><<<recurrence, kThreads, 0, stream>>>(p);
    return cudaGetLastError();
  }));
  return WithActivation(args.out.dtype, [&](auto act) {
    GateKernel<decltype(act)><<<gate, kOutWarps * kWarpSize, 0, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace ferry::cuda
