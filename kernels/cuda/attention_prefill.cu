#include "kernels/cuda/attention_device.cuh"

namespace ferry::cuda {
namespace {

constexpr int kRowsPerBlock = 128;  // (row, query head) pairs of a block, which share every tile they load

template <int kHeadDim>
struct PrefillShape {
  // 32 rows a warp read every key and value fragment from shared memory half as often as 16 would; at 128 dimensions
  // the sums of 32 rows do not fit into registers.
  static constexpr int kRowTiles = kHeadDim <= 64 ? 2 : 1;
  static constexpr int kKeys = kHeadDim <= 64 ? 64 : 32;  // positions of a tile
  static constexpr int kWarps = kRowsPerBlock / (16 * kRowTiles);
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kTileBytes = kKeys * kTileRowBytes<kHeadDim>;
  static constexpr int kSharedBytes = 4 * kTileBytes;      // keys and values, this tile's and the next one's
  static constexpr bool kAsks = kSharedBytes > 48 * 1024;  // for more than a kernel gets without asking
};

// Grid: [ceil(pairs / kRowsPerBlock), num_kv_heads]; tiles with the most keys start first. Block: kWarps warps, each
// with 16 * kRowTiles pairs: pair i is row i / group, query head i % group of the kv head. Pairs share keys, so a
// tile of 128 pairs spans only 16 rows of eight heads, and a window of 128 costs three or four tiles of keys. One
// barrier a tile: the loads of the next tile start after it and have the products of this one to arrive.
// Bound: 4 * heads * head_dim flops for every (row, key it sees), on tensor cores by mma (about 0.6 of what wgmma
// reaches).
template <int kHeadDim, typename Act, bool kQ8>
__global__ void __launch_bounds__(PrefillShape<kHeadDim>::kThreads, kHeadDim <= 64 ? 2 : 1) PrefillKernel(PrefillParams p) {
  using Shape = PrefillShape<kHeadDim>;
  constexpr int kRowTiles = Shape::kRowTiles, kThreads = Shape::kThreads, kKeys = Shape::kKeys;
  extern __shared__ __align__(128) unsigned char shared[];

  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = thread % kWarpSize, kv_head = blockIdx.y;
  const int64_t first_pair = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kRowsPerBlock;
  const int64_t last_pair = min(first_pair + kRowsPerBlock, p.pairs) - 1;
  const int block_first = p.first_position + static_cast<int>(first_pair / p.group);
  const int block_last = p.first_position + static_cast<int>(last_pair / p.group);
  const int end = block_last + 1, begin = p.window > 0 ? max(0, block_first - p.window + 1) : 0;
  const int first_key = begin / kKeys * kKeys, num_tiles = (end - first_key + kKeys - 1) / kKeys;

  // This lane's rows: two of each row tile.
  int position[kRowTiles][2];
  uint32_t queries[kRowTiles][kHeadDim / 16][4];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const Act* row[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t pair = first_pair + (warp * kRowTiles + r) * 16 + h * 8 + lane / 4;
      const int64_t clamped = min(pair, last_pair);
      position[r][h] = p.first_position + static_cast<int>(clamped / p.group);
      row[h] = static_cast<const Act*>(p.q) + clamped / p.group * p.q_stride +
               (static_cast<int64_t>(kv_head) * p.group + clamped % p.group) * kHeadDim;
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) LoadQueries<Act>(row[0], row[1], step * 16, queries[r][step]);
  }

  const KvPlane keys = PlaneOf<kHeadDim, kQ8>(p.keys, p.num_blocks, p.num_kv_heads, kv_head);
  const KvPlane values = PlaneOf<kHeadDim, kQ8>(p.values, p.num_blocks, p.num_kv_heads, kv_head);
  typename LoaderOf<kHeadDim, kKeys, kThreads, kQ8>::Type key_loader, value_loader;
  TableWalk<kKeys> blocks;
  const auto key_tile = [&](int tile) { return shared + (tile % 2) * 2 * Shape::kTileBytes; };
  const auto value_tile = [&](int tile) { return key_tile(tile) + Shape::kTileBytes; };
  const auto fetch = [&](int tile) {
    const int at = first_key + tile * kKeys;
    key_loader.Fetch(keys, blocks, at, begin, end, key_tile(tile), thread);
    value_loader.Fetch(values, blocks, at, begin, end, value_tile(tile), thread);
    CopyAsyncCommit();
    blocks.Step();
  };
  const auto store = [&](int tile) {
    key_loader.Store(key_tile(tile), thread);
    value_loader.Store(value_tile(tile), thread);
  };
  blocks.Start(p.table, p.table_size, first_key);
  fetch(0);
  store(0);

  float sums[kRowTiles][kHeadDim / 8][4] = {};
  float largest[kRowTiles][2], total[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    largest[r][0] = largest[r][1] = -INFINITY;
    total[r][0] = total[r][1] = 0.0f;
  }

  for (int tile = 0; tile < num_tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();  // this tile is there, and nobody still reads the one before it
    const bool more = tile + 1 < num_tiles;
    if (more) fetch(tile + 1);

    float scores[kRowTiles][kKeys / 8][4] = {};
    QueriesTimesKeys<kHeadDim, kRowTiles, kKeys / 8>(queries, key_tile(tile), scores);

    const int at = first_key + tile * kKeys;
    if (at + kKeys > block_first + 1 || (p.window > 0 && at <= block_last - p.window)) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = at + t * 8 + lane % 4 * 2 + i % 2, row = position[r][i / 2];
            if (key > row || (p.window > 0 && key <= row - p.window)) scores[r][t][i] = -INFINITY;
          }
        }
      }
    }

    // Online softmax. A tile that a row does not see leaves its bits alone: the factor is 2^0 and the weights are 0.
    float factor[kRowTiles][2];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float tile_largest = -INFINITY;
#pragma unroll
        for (int t = 0; t < kKeys / 8; ++t) {
          tile_largest = fmaxf(tile_largest, fmaxf(scores[r][t][2 * h], scores[r][t][2 * h + 1]));
        }
        tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 1));
        tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 2));
        const float now = fmaxf(largest[r][h], tile_largest), base = now == -INFINITY ? 0.0f : now;
        const float minus = -base * p.scale_log2;
        factor[r][h] = Exp2((largest[r][h] - base) * p.scale_log2);
        grown |= factor[r][h] != 1.0f;
        largest[r][h] = now;
        float sum = 0.0f;
#pragma unroll
        for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            scores[r][t][i] = Exp2(fmaf(scores[r][t][i], p.scale_log2, minus));
            sum += scores[r][t][i];
          }
        }
        total[r][h] = fmaf(total[r][h], factor[r][h], sum);
      }
    }
    if (__any_sync(0xffffffffu, grown)) {  // seldom after the first tiles
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; ++d) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[r][d][i] *= factor[r][i / 2];
        }
      }
    }
    WeightsTimesValues<kHeadDim, kRowTiles, kKeys / 8>(scores, value_tile(tile), sums);
    if (more) store(tile + 1);
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t pair = first_pair + (warp * kRowTiles + r) * 16 + h * 8 + lane / 4;
      float sum = total[r][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (pair > last_pair) continue;
      const int64_t head = static_cast<int64_t>(kv_head) * p.group + pair % p.group;
      float factor = JoinSink(p.sinks, head, largest[r][h] * p.scale_log2, sum);
      factor /= sum;
      Act* const out = static_cast<Act*>(p.out) + pair / p.group * p.out_stride + head * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        alignas(4) Act two[2] = {FromFloat<Act>(sums[r][d][2 * h] * factor), FromFloat<Act>(sums[r][d][2 * h + 1] * factor)};
        *reinterpret_cast<uint32_t*>(out + d * 8) = *reinterpret_cast<const uint32_t*>(two);
      }
    }
  }
}

}  // namespace

bool AttentionSupportsHeadDim(int64_t head_dim) {
  if (head_dim == 32 || head_dim == 64 || head_dim == 128) return true;
  int device = 0, shared_bytes = 0;
  return head_dim == 256 && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         shared_bytes >= PrefillShape<256>::kSharedBytes;
}

cudaError_t LaunchAttentionPrefill(const AttentionArgs& args, int64_t first_position, const int32_t* table, int64_t table_size,
                                   cudaStream_t stream) {
  if (args.q.rows == 0) return cudaSuccess;
  if (args.cache.num_kv_heads < 1 || args.num_heads % args.cache.num_kv_heads != 0 || table_size < 1 || first_position < 0 ||
      first_position + args.q.rows > 0x7fffffff - 64) {
    return cudaErrorInvalidValue;
  }
  PrefillParams p;
  p.q = args.q.data;
  p.out = args.out.data;
  p.q_stride = args.q.stride;
  p.out_stride = args.out.stride;
  p.keys = args.cache.keys;
  p.values = args.cache.values;
  p.num_blocks = args.cache.num_blocks;
  p.num_kv_heads = static_cast<int>(args.cache.num_kv_heads);
  p.group = static_cast<int>(args.num_heads / args.cache.num_kv_heads);
  p.table = table;
  p.table_size = static_cast<int>(table_size);
  p.first_position = static_cast<int>(first_position);
  p.pairs = args.q.rows * p.group;
  p.window = static_cast<int>(args.window);
  p.sinks = args.sinks;
  p.scale_log2 = args.scale * kLog2E;
  if (args.warpgroups && args.cache.dtype == DType::kF16 && args.cache.head_dim == 64) {
    return LaunchPrefillWgmma(p, args.q.dtype, stream);
  }
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(p.pairs, kRowsPerBlock), p.num_kv_heads, 1, &grid));
  return WithHeadDim(args.cache.head_dim, [&](auto head_dim) {
    return WithActivation(args.q.dtype, [&](auto act_type) {
      using Act = decltype(act_type);
      using Shape = PrefillShape<head_dim()>;
      const auto launch = [&](auto kernel) {
        if constexpr (Shape::kAsks) {
          FERRY_CUDA_RETURN_IF_ERROR(
              cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
        }
        kernel<<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
        return cudaGetLastError();
      };
      if (args.cache.dtype == DType::kQ8_0) return launch(PrefillKernel<head_dim(), Act, true>);
      return launch(PrefillKernel<head_dim(), Act, false>);
    });
  });
}

}  // namespace ferry::cuda
