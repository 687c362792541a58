#include "common/model/limits.h"
#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/latent_store.h"
#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/rope_device.cuh"

namespace ferry::cuda {
namespace {

constexpr int kThreads = 256;

// Grid: [rows]. Block: kThreads: the row's cosines and sines and the norm's factor; the rotated parts of the queries; the key,
// 32 neighbours a warp.
// Bound: rows * (latent * 4 + heads * num_dims * 4 + cache bytes) through device memory.
template <typename Act>
__global__ void __launch_bounds__(kThreads) LatentStoreKernel(LatentStoreArgs args) {
  __shared__ float cosines[kMaxLatentHeadDim / 2], sines[kMaxLatentHeadDim / 2], scratch[kWarpSize];
  AwaitLaunchesBefore();
  const int row = blockIdx.x, position = args.places.positions[row];
  const int half = args.num_dims / 2, dim = static_cast<int>(args.cache.head_dim), rank = dim - args.num_dims;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    CosSin(position, args.frequencies[i], args.attention_factor, &cosines[i], &sines[i]);
  }
  const float* const latent = static_cast<const float*>(args.latent.data) + row * args.latent.stride;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < rank; i += kThreads) squares = fmaf(latent[i], latent[i], squares);
  const float factor = 1.0f / sqrtf(BlockSum(squares, scratch) / static_cast<float>(rank) + args.norm_epsilon);  // a barrier

  // Number `d` of `in`, which has num_dims numbers, after rotation.
  const auto rotated = [&](const auto* in, int d) {
    const float x = ToFloat(in[d]);
    if (args.neighbours) {
      const int pair = d / 2;
      if (d % 2 == 0) return fmaf(x, cosines[pair], -(ToFloat(in[d + 1]) * sines[pair]));
      return fmaf(x, cosines[pair], ToFloat(in[d - 1]) * sines[pair]);
    }
    if (d < half) return fmaf(x, cosines[d], -(ToFloat(in[d + half]) * sines[d]));
    return fmaf(x, cosines[d - half], ToFloat(in[d - half]) * sines[d - half]);
  };

  const int num_heads = static_cast<int>(args.num_heads), q_dim = static_cast<int>(args.q.cols) / num_heads;
  const Act* const q = static_cast<const Act*>(args.q.data) + row * args.q.stride;
  Act* const q_out = static_cast<Act*>(args.q_out.data) + row * args.q_out.stride;
  for (int i = threadIdx.x; i < num_heads * args.num_dims; i += kThreads) {
    const int head = i / args.num_dims, d = i % args.num_dims;
    q_out[head * dim + rank + d] = FromFloat<Act>(rotated(q + (head + 1) * q_dim - args.num_dims, d));
  }

  const int* const table = args.places.tables + args.places.table_starts[row];
  const int64_t block = table[position / kKvBlock % args.places.table_sizes[row]];
  const int64_t cache_row = block * kKvBlock + position % kKvBlock;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int first = warp * kKvQuant; first < dim; first += kThreads / kWarpSize * kKvQuant) {
    const int d = first + lane;
    if (d >= dim) continue;  // of F16 alone
    const float x = d < rank ? latent[d] * factor * args.norm[d] : rotated(latent + rank, d - rank);
    StoreInCache(args.cache, /*is_key=*/true, cache_row, d, x);
  }
}

}  // namespace

cudaError_t LaunchLatentStore(const LatentStoreArgs& args, cudaStream_t stream) {
  if (args.latent.rows == 0) return cudaSuccess;
  const int64_t dim = args.cache.head_dim;
  const bool known_type = args.cache.dtype == DType::kF16 || (args.cache.dtype == DType::kQ8_0 && dim % kKvQuant == 0);
  if (!known_type || dim > kMaxLatentHeadDim || args.num_dims < 0 || args.num_dims % 2 != 0 || args.num_dims >= dim ||
      args.cache.num_kv_heads != 1 || args.num_heads < 1 || args.q.cols > 1 << 24 || args.q_out.cols > 1 << 24) {
    return cudaErrorInvalidValue;
  }
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.latent.rows, 1, 1, &grid));
  return WithActivation(args.q_out.dtype, [&](auto act) {
    return LaunchOverlapping(LatentStoreKernel<decltype(act)>, grid, kThreads, stream, args);
  });
}

}  // namespace ferry::cuda
