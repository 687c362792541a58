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
constexpr int kRowPieces = kDim * 2 / 16, kPieces = kKeys * kRowPieces / kThreads;  // pieces of 16 bytes: of a row, of a thread
constexpr int kStages = 5;                                                          // 93 KB; two blocks share a multiprocessor
constexpr int kSharedBytes = kStages * kTileBytes + 2 * kWarps * 2 * kWarpSize * static_cast<int>(sizeof(float4));
static_assert(kDim % (16 * kWarps) == 0 && kKeys * kRowPieces % kThreads == 0 && kKvBlock == 2 * kKeys);

// The keys of a block's cut, tile by tile.
struct KeyTiles {
  const std::byte* cache;
  const int32_t* table;
  int table_size;
  int begin, end, first_key;  // positions: those in [begin, end) are read, others of a tile become zeros
  int32_t blocks;             // lane i: the place in the cache of the cut's block 32 j + i, for the present j

  // 32 block numbers at once, since a copy cannot begin before its block's number is here.
  __device__ __forceinline__ void LookUp(int block_id) {
    int next = first_key / kKvBlock + block_id + static_cast<int>(threadIdx.x) % kWarpSize;
    if (next >= table_size) next %= table_size;  // past the row's end one of its blocks, not to be read
    blocks = table[next];
  }
  // LookUp(0) comes before the first.
  __device__ __forceinline__ void Fetch(int tile, unsigned char* to) {
    const int block_id = tile / 2;
    if (tile > 0 && tile % (2 * kWarpSize) == 0) LookUp(block_id);
    const int64_t block = __shfl_sync(0xffffffffu, blocks, block_id % kWarpSize);
    const std::byte* const from = cache + (block * kKvBlock + tile % 2 * kKeys) * (kDim * 2);
    const int first = first_key + tile * kKeys;
    const bool whole = first >= begin && first + kKeys <= end;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreads + static_cast<int>(threadIdx.x), row = piece / kRowPieces;
      CopyAsync16(to + row * (kRowBytes - kDim * 2) + piece * 16, from + piece * 16,
                  whole || (first + row >= begin && first + row < end));
    }
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

// This warp's part of the scores [16 heads][16 keys]: `queries` has its numbers of each head. Into `part`, in the order in which
// WholeScores reads them.
__device__ __forceinline__ void PartOfScores(const uint32_t (&queries)[kSteps][4], const unsigned char* tile, float4* part) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  // Matrices of one ldmatrix: keys 0-7, numbers 0-7 and 8-15 of a step; the same of keys 8-15.
  const uint32_t base = SharedAddress(tile) + (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16 + warp * kSteps * 32;
  float sums[2][2][4] = {};  // of even and of odd steps, of keys 0-7 and 8-15: four chains of products
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t b[4];
    LoadMatrix4(b, base + step * 32);
    MmaF16(sums[step % 2][0], queries[step], b[0], b[1]);
    MmaF16(sums[step % 2][1], queries[step], b[2], b[3]);
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    part[(warp * 2 + t) * kWarpSize + lane] = float4{sums[0][t][0] + sums[1][t][0], sums[0][t][1] + sums[1][t][1],
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

// Grid: [max_cuts, ceil(num_heads / 16), rows]. Warp w multiplies numbers [144 w, 144 w + 144) of the queries, which it has in
// registers, with those of a tile's keys; the parts meet in shared memory, every warp turns their sums into the same weights and
// has values [128 w, 128 w + 128). A key's numbers so leave shared memory once for scores and once as values. The scores of the
// tile to come are begun before the values of this one, so that a tile costs one barrier.
// Bound: 1,152 bytes a key through device memory. A row of 16 heads at 32,768 on an H200 (predicted, us): launch 2.6, the row's
// place 0.6, its first block numbers 0.6 (queries come meanwhile), first keys 1, 286 KB a multiprocessor at the copy rate 9, last
// tile and sums 1; the join 3. Of it 5 to 6 do not depend on the keys. 70 KB in flight of a block cover 2 us at that rate.
template <typename Act>
__global__ void __launch_bounds__(kThreads, 2) LatentFewHeadsKernel(LatentParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  float4* const parts = reinterpret_cast<float4*>(shared + kStages * kTileBytes);
  constexpr int kParts = kWarps * 2 * kWarpSize;
  AwaitLaunchesBefore();
  const int row = blockIdx.z, first_head = blockIdx.y * kHeads, heads = min(kHeads, p.num_heads - first_head);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, low = lane / 4;
  const RowPlace place = PlaceOf(p.places, row);
  const LatentCuts cuts = LatentCutsOf(place.position, p.window, p.most_cuts);
  if (static_cast<int>(blockIdx.x) >= cuts.count) return;
  KeyTiles keys = {.cache = p.cache, .table = p.places.tables + place.table_start, .table_size = place.table_size};
  keys.first_key = (cuts.first_block + static_cast<int>(blockIdx.x) * cuts.blocks) * kKvBlock;
  keys.end = min(place.position + 1, keys.first_key + cuts.blocks * kKvBlock);
  keys.begin = p.window > 0 ? max(0, place.position - p.window + 1) : 0;
  keys.LookUp(0);

  const Act* const q = static_cast<const Act*>(p.q) + row * p.q_stride + static_cast<int64_t>(first_head) * kDim;
  const int last = heads - 1;  // rows beyond it repeat it and are not stored
  uint32_t queries[kSteps][4];
  LoadPartOfQueries(q + min(low, last) * kDim, q + min(low + 8, last) * kDim, queries);

  const int num_tiles = (keys.end - keys.first_key + kKeys - 1) / kKeys;
  for (int tile = 0; tile < kStages; ++tile) {
    if (tile < num_tiles) keys.Fetch(tile, shared + tile * kTileBytes);
    CopyAsyncCommit();
  }

#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) queries[step][i] = AsF16Pair<Act>(queries[step][i]);
  }
  float sums[kColumnTiles][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  const uint32_t value_at = (lane / 8 % 2 * 8 + lane % 8) * kRowBytes + lane / 16 * 16 + warp * kColumnTiles * 16;

  CopyAsyncWait<kStages - 1>();
  __syncthreads();
  PartOfScores(queries, shared, parts);
  int stage = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    // The tile to come is here, the scores of this one are, and nobody still reads the tile before.
    if (tile == 0) {
      CopyAsyncWait<kStages - 2>();
    } else {
      CopyAsyncWait<kStages - 3>();
    }
    __syncthreads();
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1, last_stage = stage == 0 ? kStages - 1 : stage - 1;
    if (tile > 0) {
      if (tile + kStages - 1 < num_tiles) keys.Fetch(tile + kStages - 1, shared + last_stage * kTileBytes);
      CopyAsyncCommit();
    }
    float scores[2][4];
    WholeScores(parts + tile % 2 * kParts, scores);
    if (tile + 1 < num_tiles) PartOfScores(queries, shared + next_stage * kTileBytes, parts + (tile + 1) % 2 * kParts);

    const int first = keys.first_key + tile * kKeys;
    if (first < keys.begin || first + kKeys > keys.end) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int key = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (key < keys.begin || key >= keys.end) scores[i / 4][i % 4] = -INFINITY;
      }
    }
    float factor[2];
    Weigh(p.scale_log2, scores, largest, total, factor);
    if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {  // seldom after the first tiles
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[c][i] *= factor[i / 2];
      }
    }
    const uint32_t weights[4] = {PackF16(scores[0][0], scores[0][1]), PackF16(scores[0][2], scores[0][3]),
                                 PackF16(scores[1][0], scores[1][1]), PackF16(scores[1][2], scores[1][3])};
    // Matrices of one ldmatrix: keys 0-7 and 8-15, columns 0-7 of a pair of column tiles; the same of columns 8-15.
    const uint32_t values = SharedAddress(shared) + stage * kTileBytes + value_at;
#pragma unroll
    for (int pair = 0; pair < kColumnTiles / 2; ++pair) {
      uint32_t b[4];
      LoadMatrix4Transposed(b, values + pair * 32);
      MmaF16(sums[2 * pair], weights, b[0], b[1]);
      MmaF16(sums[2 * pair + 1], weights, b[2], b[3]);
    }
    stage = next_stage;
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = total[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (low + 8 * h >= heads) continue;
    const int64_t cut = (static_cast<int64_t>(row) * p.num_heads + first_head + low + 8 * h) * p.max_cuts + blockIdx.x;
    if (warp == 0 && lane % 4 == 0) p.stats[cut] = float2{largest[h] * p.scale_log2, sum};
    float* const to = p.sums + cut * kValues + warp * kColumnTiles * 8 + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) *reinterpret_cast<float2*>(to + c * 8) = float2{sums[c][2 * h], sums[c][2 * h + 1]};
  }
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
