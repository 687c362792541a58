#include "common/model/limits.h"
#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/rope_device.cuh"

namespace ferry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxNormedHeads = 1024;  // of queries and keys together, where heads are normalised
constexpr int kPairs = 4;              // a thread turns four neighbouring pairs: two 16-byte reads in F32

// 1 / RMS of each head of a row, queries first, then keys. A warp takes a head.
template <typename In>
__device__ __forceinline__ void NormFactors(const In* in, int num_heads, int head_dim, float epsilon, float* factors) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int head = warp; head < num_heads; head += kThreads / kWarpSize) {
    float sum = 0.0f;
    for (int d = lane; d < head_dim; d += kWarpSize) {
      const float x = ToFloat(in[head * head_dim + d]);
      sum = fmaf(x, x, sum);
    }
    sum = WarpSum(sum);
    if (lane == 0) factors[head] = 1.0f / sqrtf(sum / static_cast<float>(head_dim) + epsilon);
  }
}

// Turns whole heads of queries without norms, whose halves are multiples of four and aligned.
template <typename In, typename Act>
__device__ __forceinline__ void RotateVectors(const In* in, int num_heads, int head_dim, const float* cosines, const float* sines,
                                              Act* out) {
  const int half = head_dim / 2, groups = half / kPairs;
  for (int i = threadIdx.x; i < num_heads * groups; i += kThreads) {
    const int offset = i / groups * head_dim, d = i % groups * kPairs;
    float low[4], high[4], out_low[4], out_high[4];
    Load4(in + offset + d, 4, true, low);
    Load4(in + offset + d + half, 4, true, high);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out_low[j] = fmaf(low[j], cosines[d + j], -(high[j] * sines[d + j]));
      out_high[j] = fmaf(high[j], cosines[d + j], low[j] * sines[d + j]);
    }
    Store4(out + offset + d, 4, true, out_low);
    Store4(out + offset + d + half, 4, true, out_high);
  }
}

// Grid: [rows]. Block: kThreads. First the row's cosines and sines; then q, four pairs a thread; then k and v, where
// a warp takes 32 neighbours, which Q8_0 puts under one scale.
// Bound: rows * (q + 2 kv) * sizeof(In) + rows * q * 2 + rows * 2 kv * cache bytes through device memory.
template <typename In, typename Act>
__global__ void RopeStoreKernel(RopeStoreArgs args, bool aligned) {
  __shared__ float cosines[kMaxHeadDim / 2], sines[kMaxHeadDim / 2], factors[kMaxNormedHeads];
  AwaitLaunchesBefore();
  const int row = blockIdx.x;
  const int position = args.places.positions[row];
  const int half = args.num_dims / 2, head_dim = static_cast<int>(args.cache.head_dim);
  for (int i = threadIdx.x; i < half; i += kThreads) {
    CosSin(position, args.frequencies[i], args.attention_factor, &cosines[i], &sines[i]);
  }
  const int* const table = args.places.tables + args.places.table_starts[row];
  const int64_t block = table[position / kKvBlock % args.places.table_sizes[row]];
  const In* const in = static_cast<const In*>(args.qkv.data) + row * args.qkv.stride;
  Act* const q_out = static_cast<Act*>(args.q_out.data) + row * args.q_out.stride;
  const int num_heads = static_cast<int>(args.num_heads), kv_heads = static_cast<int>(args.cache.num_kv_heads);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (args.q_norm != nullptr) NormFactors(in, num_heads + kv_heads, head_dim, args.norm_epsilon, factors);
  __syncthreads();

  // Element d of head `index` of the row, queries first, before and after rotation.
  const auto element = [&](int index, int d) {
    const float x = ToFloat(in[index * head_dim + d]);
    if (args.q_norm == nullptr) return x;
    return x * factors[index] * (index < num_heads ? args.q_norm : args.k_norm)[d];
  };
  const auto rotated = [&](int index, int d) {
    const float x = element(index, d);
    if (d >= args.num_dims) return x;
    if (args.neighbours) {
      const int pair = d / 2;
      if (d % 2 == 0) return fmaf(x, cosines[pair], -(element(index, d + 1) * sines[pair]));
      return fmaf(x, cosines[pair], element(index, d - 1) * sines[pair]);
    }
    if (d < half) return fmaf(x, cosines[d], -(element(index, d + half) * sines[d]));
    return fmaf(x, cosines[d - half], element(index, d - half) * sines[d - half]);
  };

  // Half of head_dim is a multiple of four.
  if (aligned && args.num_dims == head_dim && args.q_norm == nullptr && !args.neighbours) {
    RotateVectors(in, num_heads, head_dim, cosines, sines, q_out);
  } else {
    for (int i = threadIdx.x; i < num_heads * head_dim; i += kThreads) {
      q_out[i] = FromFloat<Act>(rotated(i / head_dim, i % head_dim));
    }
  }

  // Keys, then values: a warp stores 32 neighbouring numbers of one head.
  const In* const keys = in + num_heads * head_dim;
  const int width = kv_heads * head_dim;
  for (int first = warp * kKvQuant; first < 2 * width; first += kThreads / kWarpSize * kKvQuant) {
    const bool is_key = first < width;
    const int i = (is_key ? first : first - width) + lane, head = i / head_dim, d = i % head_dim;
    const float x = is_key ? rotated(num_heads + head, d) : ToFloat(keys[width + i]);
    StoreInCache(args.cache, is_key, (block * kv_heads + head) * kKvBlock + position % kKvBlock, d, x);
  }
}

}  // namespace

cudaError_t LaunchRopeStore(const RopeStoreArgs& args, cudaStream_t stream) {
  if (args.qkv.rows == 0) return cudaSuccess;
  if (args.cache.head_dim < 1 || args.cache.head_dim > kMaxHeadDim || args.cache.head_dim % kKvQuant != 0 || args.num_dims < 0 ||
      args.num_dims > args.cache.head_dim || args.num_dims % 2 != 0 || (args.q_norm == nullptr) != (args.k_norm == nullptr) ||
      (args.q_norm != nullptr && args.num_heads + args.cache.num_kv_heads > kMaxNormedHeads) || args.qkv.cols > 1 << 24 ||
      (args.cache.dtype != DType::kF16 && args.cache.dtype != DType::kQ8_0)) {
    return cudaErrorInvalidValue;
  }
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.qkv.rows, 1, 1, &grid));
  return WithElement(args.qkv.dtype, [&](auto in_type) {
    return WithActivation(args.q_out.dtype, [&](auto act_type) {
      using In = decltype(in_type);
      using Act = decltype(act_type);
      const bool aligned =
          RowsAligned4<In>(args.qkv.data, args.qkv.stride) && RowsAligned4<Act>(args.q_out.data, args.q_out.stride);
      return LaunchOverlapping(RopeStoreKernel<In, Act>, grid, kThreads, stream, args, aligned);
    });
  });
}

}  // namespace ferry::cuda
