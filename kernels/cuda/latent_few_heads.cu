#include "kernels/cuda/latent_device.cuh"
#include "kernels/cuda/overlapping_launch.cuh"

namespace ferry::cuda {
namespace {

constexpr int kHeads = 16;  // of a block: the rows of one tensor core tile
constexpr int kKeys = 16;   // of a tile: half a block of the cache, and one step of the products with values
constexpr int kDim = 576, kValues = 512;
constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kSteps = kDim / 16 / kWarps;          // of 16 numbers of a key: a warp's part of the scores
constexpr int kColumnTiles = kValues / 8 / kWarps;  // of eight columns: a warp's part of the values
constexpr int kRowBytes = kTileRowBytes<kDim>, kTileBytes = kKeys * kRowBytes;
constexpr int kKeyThreads = kThreads / kKeys;         // copy a key
constexpr int kPieces = kDim * 2 / 16 / kKeyThreads;  // of 16 bytes: a thread's of a tile
constexpr int kStages = 5;                            // 93 KB; two blocks share a multiprocessor
constexpr int kSharedBytes = kStages * kTileBytes + 2 * kWarps * 2 * kWarpSize * static_cast<int>(sizeof(float4));
static_assert(kDim % (16 * kWarps) == 0 && kPieces * kKeyThreads * 16 == kDim * 2 && kKvBlock == 2 * kKeys);

// The keys of a block's cut, tile by tile. Eight threads copy a key, every eighth piece each, so that a thread's pieces lie at
// constant distances: address arithmetic was a third of a tile's instructions before.
struct KeyTiles {
  const std::byte* from;  // this thread's first piece, as if its key were one of the cache's first tile
  const int32_t* table;
  int table_size;
  int begin, end, first_key;  // positions: those in [begin, end) are read, others of a tile become zeros
  int32_t blocks;             // lane i: the place in the cache of the cut's block 32 j + i, for the present j

  // False if the row has no cut blockIdx.x.
  __device__ __forceinline__ bool Find(const LatentParams& p, int64_t row) {
    const RowPlace place = PlaceOf(p.places, row);
    const LatentCuts cuts = LatentCutsOf(place.position, p.window, p.most_cuts);
    if (static_cast<int>(blockIdx.x) >= cuts.count) return false;
    from = p.cache + threadIdx.x / kKeyThreads * (kDim * 2) + threadIdx.x % kKeyThreads * 16;
    table = p.places.tables + place.table_start;
    table_size = place.table_size;
    first_key = (cuts.first_block + static_cast<int>(blockIdx.x) * cuts.blocks) * kKvBlock;
    end = min(place.position + 1, first_key + cuts.blocks * kKvBlock);
    begin = p.window > 0 ? max(0, place.position - p.window + 1) : 0;
    return true;
  }
  // Before the first Fetch, and before that of every 64th tile: 32 block numbers at once, since a copy cannot begin before its
  // block's number is here.
  __device__ __forceinline__ void LookUp(int tile) {
    int next = first_key / kKvBlock + tile / 2 + static_cast<int>(threadIdx.x) % kWarpSize;
    if (next >= table_size) next %= table_size;  // past the row's end one of its blocks, not to be read
    blocks = table[next];
  }
  // A tile past the last becomes zeros.
  __device__ __forceinline__ void Fetch(int tile, unsigned char* to) {
    const int64_t block = __shfl_sync(0xffffffffu, blocks, tile / 2 % kWarpSize);
    const int row = threadIdx.x / kKeyThreads, key = first_key + tile * kKeys + row;
    const std::byte* const piece = from + (block * kKvBlock + tile % 2 * kKeys) * (kDim * 2);
    to += row * kRowBytes + threadIdx.x % kKeyThreads * 16;
    const bool valid = key >= begin && key < end;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) CopyAsync16(to + i * kKeyThreads * 16, piece + i * kKeyThreads * 16, valid);
  }
};

// This warp's numbers of the block's queries, from `low` and `high` on: those of the lane's two heads. Volatile, since the
// compiler would ask for them behind the copies of the first keys.
template <typename Act>
__device__ __forceinline__ void LoadPartOfQueries(const Act* low, const Act* high, uint32_t (&queries)[kSteps][4]) {
  const int first = threadIdx.x / kWarpSize * kSteps * 16 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Act* const from = (i % 2 == 0 ? low : high) + first + step * 16 + i / 2 * 8;
      asm volatile("ld.global.b32 %0, [%1];" : "=r"(queries[step][i]) : "l"(from));
    }
  }
}

// This warp's part of the scores [16 heads][16 keys], in four chains of products: [of even and of odd steps][of keys 0-7 and
// 8-15]. `queries` has its numbers of each head.
__device__ __forceinline__ void PartOfScores(const uint32_t (&queries)[kSteps][4], const unsigned char* tile,
                                             float (&sums)[2][2][4]) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  // Matrices of one ldmatrix: keys 0-7, numbers 0-7 and 8-15 of a step; the same of keys 8-15.
  const uint32_t base = SharedAddress(tile) + (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16 + warp * kSteps * 32;
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0.0f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t b[4];
    LoadMatrix4(b, base + step * 32);
    MmaF16(sums[step % 2][0], queries[step], b[0], b[1]);
    MmaF16(sums[step % 2][1], queries[step], b[2], b[3]);
  }
}
// Into `parts`, in the order in which WholeScores reads them.
__device__ __forceinline__ void StorePart(const float (&sums)[2][2][4], float4* parts) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    parts[(warp * 2 + t) * kWarpSize + lane] = float4{sums[0][t][0] + sums[1][t][0], sums[0][t][1] + sums[1][t][1],
                                                      sums[0][t][2] + sums[1][t][2], sums[0][t][3] + sums[1][t][3]};
  }
}
// The warps' parts, added in the same order by each. Lane l has rows l / 4 (elements 0, 1) and l / 4 + 8 (elements 2, 3), columns
// 8 t + l % 4 * 2 + {0, 1} of t.
__device__ __forceinline__ void WholeScores(const float4* parts, float (&scores)[2][4]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    float4 sum = parts[t * kWarpSize + lane];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      const float4 part = parts[(warp * 2 + t) * kWarpSize + lane];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    scores[t][0] = sum.x, scores[t][1] = sum.y, scores[t][2] = sum.z, scores[t][3] = sum.w;
  }
}

// Online softmax: scores become weights, and `factor` is what the sums before are worth.
__device__ __forceinline__ void Weigh(float scale_log2, float (&scores)[2][4], float (&largest)[2], float (&total)[2],
                                      float (&factor)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float now = fmaxf(fmaxf(scores[0][2 * h], scores[0][2 * h + 1]), fmaxf(scores[1][2 * h], scores[1][2 * h + 1]));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
    now = fmaxf(largest[h], now);
    const float base = now == -INFINITY ? 0.0f : now, minus = -base * scale_log2;
    factor[h] = Exp2((largest[h] - base) * scale_log2);
    largest[h] = now;
    float sum = 0.0f;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        scores[t][i] = Exp2(fmaf(scores[t][i], scale_log2, minus));
        sum += scores[t][i];
      }
    }
    total[h] = fmaf(total[h], factor[h], sum);
  }
}

// Scores of keys outside [begin, end) become those of no weight. `first`: the tile's first key.
__device__ __forceinline__ void Mask(const KeyTiles& keys, int first, float (&scores)[2][4]) {
  const unsigned seen = keys.end - keys.begin;
  const int from = first - keys.begin + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (static_cast<unsigned>(from + i / 4 * 8 + i % 2) >= seen) scores[i / 4][i % 4] = -INFINITY;
  }
}

// This warp's columns of a tile's values, as operands of the products with weights.
__device__ __forceinline__ void LoadValues(const unsigned char* tile, uint32_t (&values)[kColumnTiles / 2][4]) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  // Matrices of one ldmatrix: keys 0-7 and 8-15, columns 0-7 of a pair of column tiles; the same of columns 8-15.
  const uint32_t base =
      SharedAddress(tile) + (lane / 8 % 2 * 8 + lane % 8) * kRowBytes + lane / 16 * 16 + warp * kColumnTiles * 16;
#pragma unroll
  for (int pair = 0; pair < kColumnTiles / 2; ++pair) LoadMatrix4Transposed(values[pair], base + pair * 32);
}

__device__ __forceinline__ void AddWeighted(const float (&scores)[2][4], const float (&factor)[2],
                                            const uint32_t (&values)[kColumnTiles / 2][4], float (&sums)[kColumnTiles][4]) {
  if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {  // seldom after the first tiles
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[c][i] *= factor[i / 2];
    }
  }
  const uint32_t weights[4] = {PackF16(scores[0][0], scores[0][1]), PackF16(scores[0][2], scores[0][3]),
                               PackF16(scores[1][0], scores[1][1]), PackF16(scores[1][2], scores[1][3])};
#pragma unroll
  for (int pair = 0; pair < kColumnTiles / 2; ++pair) {
    MmaF16(sums[2 * pair], weights, values[pair][0], values[pair][1]);
    MmaF16(sums[2 * pair + 1], weights, values[pair][2], values[pair][3]);
  }
}

__device__ __forceinline__ void StoreCut(const LatentParams& p, int64_t row, int first_head, const float (&largest)[2],
                                         const float (&total)[2], const float (&sums)[kColumnTiles][4]) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = total[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int head = first_head + lane / 4 + 8 * h;
    if (head >= p.num_heads) continue;
    const int64_t cut = (row * p.num_heads + head) * p.max_cuts + blockIdx.x;
    if (warp == 0 && lane % 4 == 0) p.stats[cut] = float2{largest[h] * p.scale_log2, sum};
    float* const to = p.sums + cut * kValues + warp * kColumnTiles * 8 + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) *reinterpret_cast<float2*>(to + c * 8) = float2{sums[c][2 * h], sums[c][2 * h + 1]};
  }
}

// Grid: [max_cuts, ceil(num_heads / 16), rows]. Warp w multiplies numbers [144 w, 144 w + 144) of the queries, which it has in
// registers, with those of a tile's keys; the parts meet in shared memory, every warp turns their sums into the same weights and
// has values [128 w, 128 w + 128). A key's numbers so leave shared memory once for scores and once as values.
// Bound: 1,152 bytes a key through device memory. One row gives every scheduler a single warp, so that what counts is the latency
// of a tile's instructions: a tile costs one barrier, and no branch stands between the products of the tile to come, which it
// begins, and the softmax and the loads of values that fill the time until their sums are there. The products of the tile past
// the last are of no use and not read.
// docs/measurements/kernels.md has what it takes.
template <typename Act>
__global__ void __launch_bounds__(kThreads, 2) LatentFewHeadsKernel(LatentParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  float4* const parts = reinterpret_cast<float4*>(shared + kStages * kTileBytes);
  constexpr int kParts = kWarps * 2 * kWarpSize;
  AwaitLaunchesBefore();
  const int row = blockIdx.z, first_head = blockIdx.y * kHeads, last = min(kHeads, p.num_heads - first_head) - 1;
  KeyTiles keys;
  if (!keys.Find(p, row)) return;
  keys.LookUp(0);

  const Act* const q = static_cast<const Act*>(p.q) + row * p.q_stride + static_cast<int64_t>(first_head) * kDim;
  const int low = threadIdx.x % kWarpSize / 4;  // rows beyond the last head repeat it and are not stored
  uint32_t queries[kSteps][4];
  LoadPartOfQueries(q + min(low, last) * kDim, q + min(low + 8, last) * kDim, queries);

  constexpr int kAhead = kStages - 1;
  for (int tile = 0; tile < kAhead; ++tile) {
    keys.Fetch(tile, shared + tile * kTileBytes);
    CopyAsyncCommit();
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) queries[step][i] = AsF16Pair<Act>(queries[step][i]);
  }
  float next_scores[2][2][4];
  CopyAsyncWait<kAhead - 1>();
  __syncthreads();
  PartOfScores(queries, shared, next_scores);
  StorePart(next_scores, parts);

  float sums[kColumnTiles][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  const int num_tiles = (keys.end - keys.first_key + kKeys - 1) / kKeys;
  int stage = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    CopyAsyncWait<kAhead - 2>();
    __syncthreads();  // the tile to come is here, the scores of this one are, and nobody still reads the tile before
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1, last_stage = stage == 0 ? kStages - 1 : stage - 1;
    if ((tile + kAhead) % (2 * kWarpSize) == 0) keys.LookUp(tile + kAhead);
    float scores[2][4], factor[2];
    uint32_t values[kColumnTiles / 2][4];
    WholeScores(parts + tile % 2 * kParts, scores);
    PartOfScores(queries, shared + next_stage * kTileBytes, next_scores);
    LoadValues(shared + stage * kTileBytes, values);
    keys.Fetch(tile + kAhead, shared + last_stage * kTileBytes);
    CopyAsyncCommit();
    Mask(keys, keys.first_key + tile * kKeys, scores);
    Weigh(p.scale_log2, scores, largest, total, factor);
    StorePart(next_scores, parts + (tile + 1) % 2 * kParts);
    AddWeighted(scores, factor, values, sums);
    stage = next_stage;
  }
  CopyAsyncWait<0>();
  StoreCut(p, row, first_head, largest, total, sums);
}

}  // namespace

bool LatentFewHeadsTakes(const AttentionArgs& args, int shared_bytes) {
  return args.num_heads < kWideRows && args.cache.dtype == DType::kF16 && args.cache.head_dim == kDim &&
         args.latent_values == kValues && kSharedBytes <= shared_bytes;
}

cudaError_t LaunchLatentFewHeads(const LatentParams& p, DType act, dim3 grid, cudaStream_t stream) {
  return WithActivation(act, [&](auto act_type) {
    const auto kernel = LatentFewHeadsKernel<decltype(act_type)>;
    FERRY_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return LaunchOverlapping(kernel, grid, kThreads, LaunchPlace{stream, kSharedBytes}, p);
  });
}

}  // namespace ferry::cuda
