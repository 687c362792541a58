#include "kernels/cuda/join_cuts.cuh"
#include "kernels/cuda/overlapping_launch.cuh"

namespace ferry::cuda {
namespace {

constexpr int kHeadTile = 16;  // query heads of a block: the rows of one tensor core tile

template <int kHeadDim>
struct DecodeShape {
  static constexpr int kWarps = kHeadDim <= 64 ? 4 : kHeadDim <= 128 ? 2 : 1;  // each with one block of the cache
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kSplitKeys = kWarps * kKvBlock;  // positions of a cut
  static constexpr int kTileBytes = kKvBlock * kTileRowBytes<kHeadDim>;
  static constexpr int kSharedBytes = kWarps * 2 * kTileBytes;  // of the sums at the end, too
  static_assert(kSharedBytes <= 48 * 1024 && kWarps * kHeadTile * kHeadDim * 4 <= kSharedBytes);
};
int SplitKeys(int64_t head_dim) { return (head_dim <= 64 ? 4 : head_dim <= 128 ? 2 : 1) * kKvBlock; }

// Cuts that a row at max_position or before can touch.
int64_t MaxSplits(int64_t head_dim, int64_t window, int64_t max_position) {
  const int64_t split_keys = SplitKeys(head_dim), all = max_position / split_keys + 1;
  return window > 0 && (window - 1) / split_keys + 2 < all ? (window - 1) / split_keys + 2 : all;
}

struct DecodeParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  const std::byte* keys;
  const std::byte* values;
  int64_t num_blocks;
  int num_kv_heads, group, num_heads, head_tiles;  // head_tiles: ceil(group / kHeadTile)
  DevicePlaces places;
  int max_splits, window;
  const float* sinks;
  float scale_log2;
  float* sums;    // [row][head][max_splits][head_dim], not yet divided
  float2* stats;  // [row][head][max_splits]: largest score (times scale_log2), sum of weights
};

// Grid: [max_splits, num_kv_heads * head_tiles, rows]. Block: kWarps warps, each with the 32 keys of one cache block
// and all query heads of the tile: every load of the cut is in flight at once. Cuts lie at multiples of kSplitKeys
// positions, so the bits of a row depend on its position alone.
// Bound: the keys' and values' bytes through device memory, once for all heads of a kv head.
template <int kHeadDim, typename Act, bool kQ8>
__global__ void __launch_bounds__(DecodeShape<kHeadDim>::kThreads) DecodeKernel(DecodeParams p) {
  using Shape = DecodeShape<kHeadDim>;
  constexpr int kWarps = Shape::kWarps, kKeyTiles = kKvBlock / 8;
  __shared__ __align__(128) unsigned char shared[Shape::kSharedBytes];
  __shared__ float warp_largest[kWarps][kHeadTile], warp_total[kWarps][kHeadTile];

  AwaitLaunchesBefore();
  const int row = blockIdx.z, kv_head = blockIdx.y / p.head_tiles, first_head = blockIdx.y % p.head_tiles * kHeadTile;
  const int position = p.places.positions[row], end = position + 1;
  const int begin = p.window > 0 ? max(0, position - p.window + 1) : 0;
  const int split = begin / Shape::kSplitKeys + blockIdx.x;
  if (split * Shape::kSplitKeys >= end) return;

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int first_key = split * Shape::kSplitKeys + warp * kKvBlock;
  const bool any = first_key < end && first_key + kKvBlock > begin;
  unsigned char* const key_tile = shared + warp * 2 * Shape::kTileBytes;
  unsigned char* const value_tile = key_tile + Shape::kTileBytes;
  float sums[1][kHeadDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  if (any) {
    const KvPlane keys = PlaneOf<kHeadDim, kQ8>(p.keys, p.num_blocks, p.num_kv_heads, kv_head);
    const KvPlane values = PlaneOf<kHeadDim, kQ8>(p.values, p.num_blocks, p.num_kv_heads, kv_head);
    TableWalk<kKvBlock> blocks;
    blocks.Start(p.places.tables + p.places.table_starts[row], p.places.table_sizes[row], first_key);
    typename LoaderOf<kHeadDim, kKvBlock, kWarpSize, kQ8>::Type key_loader, value_loader;
    key_loader.Fetch(keys, blocks, first_key, begin, end, key_tile, lane);
    CopyAsyncCommit();
    value_loader.Fetch(values, blocks, first_key, begin, end, value_tile, lane);
    CopyAsyncCommit();

    const Act* const q =
        static_cast<const Act*>(p.q) + row * p.q_stride + (static_cast<int64_t>(kv_head) * p.group + first_head) * kHeadDim;
    const int low = lane / 4, high = low + 8, heads = p.group - first_head;
    uint32_t queries[1][kHeadDim / 16][4];
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      LoadQueries<Act>(low < heads ? q + low * kHeadDim : nullptr, high < heads ? q + high * kHeadDim : nullptr, step * 16,
                       queries[0][step]);
    }
    key_loader.Store(key_tile, lane);
    value_loader.Store(value_tile, lane);

    CopyAsyncWait<1>();
    __syncwarp();
    float scores[1][kKeyTiles][4] = {};
    QueriesTimesKeys<kHeadDim, 1, kKeyTiles>(queries, key_tile, scores);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          const int key = first_key + t * 8 + lane % 4 * 2 + i % 2;
          if (key < begin || key >= end) scores[0][t][i] = -INFINITY;
          largest[h] = fmaxf(largest[h], scores[0][t][i]);
        }
      }
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 1));
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 2));
      const float base = largest[h] == -INFINITY ? 0.0f : largest[h], minus = -base * p.scale_log2;
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          scores[0][t][i] = Exp2(fmaf(scores[0][t][i], p.scale_log2, minus));
          total[h] += scores[0][t][i];
        }
      }
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
    }
    CopyAsyncWait<0>();
    __syncwarp();
    WeightsTimesValues<kHeadDim, 1, kKeyTiles>(scores, value_tile, sums);
  }

  // The warps' parts, joined in order of position.
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(shared);  // [kWarps][kHeadTile][kHeadDim]
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int head = lane / 4 + 8 * h;
    if (lane % 4 == 0) {
      warp_largest[warp][head] = largest[h] == -INFINITY ? -INFINITY : largest[h] * p.scale_log2;
      warp_total[warp][head] = total[h];
    }
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d) {
      float2* const target = reinterpret_cast<float2*>(parts + (warp * kHeadTile + head) * kHeadDim + d * 8 + lane % 4 * 2);
      *target = float2{sums[0][d][2 * h], sums[0][d][2 * h + 1]};
    }
  }
  __syncthreads();
  const int heads = min(kHeadTile, p.group - first_head);
  for (int i = threadIdx.x; i < heads * kHeadDim; i += Shape::kThreads) {
    const int head = i / kHeadDim, d = i % kHeadDim;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, warp_largest[w][head]);
    const float base = top == -INFINITY ? 0.0f : top;
    float sum = 0.0f, weight = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Exp2(warp_largest[w][head] - base);
      sum = fmaf(parts[(w * kHeadTile + head) * kHeadDim + d], factor, sum);
      weight = fmaf(warp_total[w][head], factor, weight);
    }
    const int64_t cut =
        (static_cast<int64_t>(row) * p.num_heads + kv_head * p.group + first_head + head) * p.max_splits + blockIdx.x;
    p.sums[cut * kHeadDim + d] = sum;
    if (d == 0) p.stats[cut] = float2{top, weight};
  }
}

// Models with heads of 256 have few of them, and cuts of 32 positions. Others: all columns in a block.
template <int kHeadDim>
using DecodeJoin = JoinShape<256, kHeadDim <= 128 ? kHeadDim / 4 : 8>;

// Grid: [rows * heads, head_dim / kColumns].
template <int kHeadDim, typename Act>
__global__ void __launch_bounds__(DecodeJoin<kHeadDim>::kThreads) JoinKernel(DecodeParams p) {
  constexpr int kSplitKeys = DecodeShape<kHeadDim>::kSplitKeys;
  AwaitLaunchesBefore();
  const int64_t row = blockIdx.x / p.num_heads;
  const int head = blockIdx.x % p.num_heads, position = p.places.positions[row];
  const int begin = p.window > 0 ? max(0, position - p.window + 1) : 0;
  const int splits = position / kSplitKeys - begin / kSplitKeys + 1;
  const int64_t first_split = (row * p.num_heads + head) * p.max_splits;
  const float sink = p.sinks != nullptr ? p.sinks[head] * kLog2E : -INFINITY;
  JoinCuts<DecodeJoin<kHeadDim>>(p.stats + first_split, p.sums + first_split * kHeadDim, splits, kHeadDim,
                                 static_cast<int>(blockIdx.y) * DecodeJoin<kHeadDim>::kColumns, sink,
                                 static_cast<Act*>(p.out) + row * p.out_stride + static_cast<int64_t>(head) * kHeadDim);
}

int64_t SumsBytes(int64_t rows, int64_t num_heads, int64_t head_dim, int64_t splits) {
  return AlignUp(rows * num_heads * splits * head_dim * 4, 16);
}

}  // namespace

int64_t DecodeWorkspaceBytes(int64_t rows, int64_t num_heads, int64_t head_dim, int64_t window, int64_t max_position) {
  const int64_t splits = MaxSplits(head_dim, window, max_position);
  return SumsBytes(rows, num_heads, head_dim, splits) + rows * num_heads * splits * static_cast<int64_t>(sizeof(float2));
}

cudaError_t LaunchAttentionDecode(const AttentionArgs& args, const DevicePlaces& places, int64_t max_position, void* workspace,
                                  cudaStream_t stream) {
  if (args.q.rows == 0) return cudaSuccess;
  if (args.cache.num_kv_heads < 1 || args.num_heads % args.cache.num_kv_heads != 0 || max_position < 0 ||
      max_position > 0x7fffffff - 256) {
    return cudaErrorInvalidValue;
  }
  DecodeParams p;
  p.q = args.q.data;
  p.out = args.out.data;
  p.q_stride = args.q.stride;
  p.out_stride = args.out.stride;
  p.keys = args.cache.keys;
  p.values = args.cache.values;
  p.num_blocks = args.cache.num_blocks;
  p.num_kv_heads = static_cast<int>(args.cache.num_kv_heads);
  p.num_heads = static_cast<int>(args.num_heads);
  p.group = p.num_heads / p.num_kv_heads;
  p.head_tiles = static_cast<int>(CeilDiv(p.group, kHeadTile));
  p.places = places;
  p.max_splits = static_cast<int>(MaxSplits(args.cache.head_dim, args.window, max_position));
  p.window = static_cast<int>(args.window);
  p.sinks = args.sinks;
  p.scale_log2 = args.scale * kLog2E;
  p.sums = static_cast<float*>(workspace);
  p.stats = reinterpret_cast<float2*>(static_cast<std::byte*>(workspace) +
                                      SumsBytes(args.q.rows, args.num_heads, args.cache.head_dim, p.max_splits));
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(p.max_splits, static_cast<int64_t>(p.num_kv_heads) * p.head_tiles, args.q.rows, &grid));
  return WithHeadDim(args.cache.head_dim, [&](auto head_dim) {
    return WithActivation(args.q.dtype, [&](auto act_type) {
      using Act = decltype(act_type);
      constexpr int kHeadDim = head_dim(), kThreads = DecodeShape<kHeadDim>::kThreads;
      const bool q8 = args.cache.dtype == DType::kQ8_0;
      const auto decode = q8 ? DecodeKernel<kHeadDim, Act, true> : DecodeKernel<kHeadDim, Act, false>;
      FERRY_CUDA_RETURN_IF_ERROR(LaunchOverlapping(decode, grid, kThreads, stream, p));
      using Join = DecodeJoin<kHeadDim>;
      dim3 join_grid;
      FERRY_CUDA_RETURN_IF_ERROR(Grid(args.q.rows * args.num_heads, kHeadDim / Join::kColumns, 1, &join_grid));
      return LaunchOverlapping(JoinKernel<kHeadDim, Act>, join_grid, Join::kThreads, stream, p);
    });
  });
}

}  // namespace ferry::cuda
