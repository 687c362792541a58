#include "kernels/cuda/join_cuts.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_device.cuh"
#include "kernels/cuda/overlapping_launch.cuh"

namespace ferry::cuda {
namespace {

constexpr int kKeys = kKvBlock;  // of a tile: one block of the cache
constexpr int kColGroups = 4;  // warps that share the rows of a warp tile: each has a quarter of a tile's keys and of the values
constexpr int kColPairs = kMaxLatentValues / 16 / kColGroups;  // of 16 columns each, at most, of a warp
constexpr int kScorePitch = kKeys + 8;                         // floats: the 16 lanes of a phase hit different banks

template <int kRows>
struct LatentShape {
  static_assert(kRows == 64 || kRows == 16);
  static constexpr int kRowTiles = kRows == 64 ? 2 : 1;  // of a warp: two read every value from shared memory half as often
  static constexpr int kWarps = kRows / (16 * kRowTiles) * kColGroups;
  static constexpr int kThreads = kWarps * kWarpSize;
  // With 64 rows the sums of a warp take 128 registers, and shared memory has room for one block of threads anyway.
  static constexpr int kBlocks = kRows == 64 ? 1 : 2;
};

// Shared memory: queries, then tiles of keys, both rows of `dim` F16 numbers and 16 bytes (kTileRowBytes), then scores. F16 has
// two tiles, Q8_0 one, and behind it the codes and scales of the tile to come.
struct LatentShared {
  int row_bytes, tiles_at, raw_at, scores_at, bytes;
};
FERRY_HOST_DEVICE inline LatentShared LatentSharedOf(int rows, int dim, bool q8) {
  LatentShared shared;
  shared.row_bytes = dim * 2 + 16;
  shared.tiles_at = rows * shared.row_bytes;
  shared.raw_at = shared.tiles_at + (q8 ? 1 : 2) * kKeys * shared.row_bytes;
  shared.scores_at = shared.raw_at + (q8 ? kKeys * dim + kKeys * dim / kKvQuant * 2 : 0);
  shared.bytes = shared.scores_at + rows * kScorePitch * 4;
  return shared;
}

// Scores [kRowTiles * 16 rows][8 keys] of a warp, added to `scores` [rows][kScorePitch] from the warp's first key on.
template <int kRowTiles>
__device__ __forceinline__ void LatentScores(const unsigned char* queries, const unsigned char* keys, int row_bytes, int steps,
                                             float* scores) {
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
  float sums[2][kRowTiles][4] = {};  // of even and of odd steps: two chains of products
  const uint32_t a_base = SharedAddress(queries) + (lane / 8 % 2 * 8 + lane % 8) * row_bytes + lane / 16 * 16;
  const unsigned char* const key = keys + g * row_bytes + q * 4;
  const auto multiply = [&](int step, float(&to)[kRowTiles][4]) {
    const uint32_t b0 = *reinterpret_cast<const uint32_t*>(key + step * 32);
    const uint32_t b1 = *reinterpret_cast<const uint32_t*>(key + step * 32 + 16);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      uint32_t a[4];
      LoadMatrix4(a, a_base + r * 16 * row_bytes + step * 32);
      MmaF16(to[r], a, b0, b1);
    }
  };
  int step = 0;
#pragma unroll 3
  for (; step + 2 <= steps; step += 2) {
    multiply(step, sums[0]);
    multiply(step + 1, sums[1]);
  }
  if (step < steps) multiply(step, sums[0]);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<float2*>(scores + (r * 16 + h * 8 + g) * kScorePitch + q * 2) =
          float2{sums[0][r][2 * h] + sums[1][r][2 * h], sums[0][r][2 * h + 1] + sums[1][r][2 * h + 1]};
    }
  }
}

// One tile of Q8_0, from codes and scales as they lie in the cache to rows of F16. Keys outside [begin, end) become zeros.
template <int kWarps>
__device__ __forceinline__ void WidenTile(const unsigned char* raw, int dim, int row_bytes, int first, int begin, int end,
                                          unsigned char* tile) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const __half* const scales = reinterpret_cast<const __half*>(raw + kKeys * dim);
  const __half2 bias = __half2half2(__ushort_as_half(0x6480));  // 1152
  for (int key = warp; key < kKeys; key += kWarps) {
    const bool valid = first + key >= begin && first + key < end;
    for (int chunk = lane; chunk < dim / 16; chunk += kWarpSize) {
      const uint4 codes = *reinterpret_cast<const uint4*>(raw + key * dim + chunk * 16);
      const __half2 scale = __half2half2(scales[key * (dim / kKvQuant) + chunk / 2]);
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      uint32_t pairs[8];
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        // As Q8Loader (attention_device.cuh): a byte under 0x64 is 1024 + byte, its flipped sign bit adds 128.
        const uint32_t wide = __byte_perm(words[w / 2] ^ 0x80808080u, 0x64646464u, w % 2 == 0 ? 0x4140 : 0x4342);
        const __half2 value = __hmul2(__hsub2(*reinterpret_cast<const __half2*>(&wide), bias), scale);
        pairs[w] = valid ? *reinterpret_cast<const uint32_t*>(&value) : 0u;
      }
      uint4* const target = reinterpret_cast<uint4*>(tile + key * row_bytes + chunk * 32);
      target[0] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
      target[1] = uint4{pairs[4], pairs[5], pairs[6], pairs[7]};
    }
  }
}

// Prefill's grid: [ceil(pairs / kRows)]; blocks with the most keys start first. Pair i is row i / num_heads, head i % num_heads.
// Decode's grid: [max_cuts, ceil(num_heads / kRows), rows].
// Warp (i, j) has the rows of row group i. It multiplies them with keys [8 j, 8 j + 8) of a tile, the scores meet in shared
// memory, and every warp of the row group turns them into the same weights for its quarter of the columns.
// Bound: 2 * heads * (dim + values) flops for every (row, key it sees), on tensor cores by mma; decode with few heads: the keys'
// bytes through device memory.
template <int kRows, typename Act, bool kQ8, bool kDecode>
__global__ void __launch_bounds__(LatentShape<kRows>::kThreads, LatentShape<kRows>::kBlocks) LatentKernel(LatentParams p) {
  using Shape = LatentShape<kRows>;
  constexpr int kRowTiles = Shape::kRowTiles, kWarps = Shape::kWarps;
  if constexpr (kDecode) AwaitLaunchesBefore();
  extern __shared__ __align__(128) unsigned char shared[];
  const LatentShared at = LatentSharedOf(kRows, p.dim, kQ8);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
  const int row_group = warp / kColGroups, col_group = warp % kColGroups;

  // The pairs of this block are [first_pair, first_pair + count) of the rows from first_row on.
  int64_t first_row = 0, first_pair = 0;
  int count, block_first, block_last, begin, end, first_key;  // block_first, block_last: positions of the first and the last row
  const int32_t* table = p.table;
  int table_size = p.table_size;
  if constexpr (kDecode) {
    first_row = blockIdx.z;
    first_pair = static_cast<int64_t>(blockIdx.y) * kRows;
    count = min(kRows, p.num_heads - static_cast<int>(first_pair));
    block_first = block_last = p.places.positions[first_row];
    const LatentCuts cuts = LatentCutsOf(block_last, p.window, p.most_cuts);
    if (static_cast<int>(blockIdx.x) >= cuts.count) return;
    first_key = (cuts.first_block + static_cast<int>(blockIdx.x) * cuts.blocks) * kKeys;
    end = min(block_last + 1, first_key + cuts.blocks * kKeys);
    table = p.places.tables + p.places.table_starts[first_row];
    table_size = p.places.table_sizes[first_row];
  } else {
    first_pair = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kRows;
    count = static_cast<int>(min(static_cast<int64_t>(kRows), p.pairs - first_pair));
    block_first = p.first_position + static_cast<int>(first_pair / p.num_heads);
    block_last = p.first_position + static_cast<int>((first_pair + count - 1) / p.num_heads);
    end = block_last + 1;
  }
  begin = p.window > 0 ? max(0, block_first - p.window + 1) : 0;
  if constexpr (!kDecode) first_key = begin / kKeys * kKeys;
  const int num_tiles = (end - first_key + kKeys - 1) / kKeys;

  int next_block = first_key / kKeys % table_size;
  int32_t block_ahead = table[next_block];  // of the next fetch, which could not begin before it is here
  const auto fetch = [&](int tile) {
    const int64_t block = block_ahead;
    next_block = next_block + 1 == table_size ? 0 : next_block + 1;
    block_ahead = table[next_block];
    if constexpr (kQ8) {
      const std::byte* const codes = p.cache + block * kKeys * p.dim;
      const std::byte* const scales = p.cache + p.num_blocks * kKeys * p.dim + block * kKeys * (p.dim / kKvQuant) * 2;
      unsigned char* const raw = shared + at.raw_at;
      for (int i = threadIdx.x; i < kKeys * p.dim / 16; i += Shape::kThreads) CopyAsync16(raw + i * 16, codes + i * 16, true);
      for (int i = threadIdx.x; i < p.dim / 8; i += Shape::kThreads) {
        CopyAsync16(raw + kKeys * p.dim + i * 16, scales + i * 16, true);
      }
    } else {
      unsigned char* const to = shared + at.tiles_at + tile % 2 * kKeys * at.row_bytes;
      for (int key = warp; key < kKeys; key += kWarps) {
        const int position = first_key + tile * kKeys + key;
        const bool valid = position >= begin && position < end;
        const std::byte* const from = p.cache + (block * kKeys + key) * p.dim * 2;
        for (int chunk = lane; chunk < p.dim / 8; chunk += kWarpSize) {
          CopyAsync16(to + key * at.row_bytes + chunk * 16, from + chunk * 16, valid);
        }
      }
    }
    CopyAsyncCommit();
  };
  fetch(0);

  const auto row_of = [&](int64_t pair) { return kDecode ? first_row : pair / p.num_heads; };
  const auto head_of = [&](int64_t pair) { return kDecode ? pair : pair % p.num_heads; };
  // A store to shared memory keeps the loads behind it waiting, so that a batch of them goes first.
  constexpr int kBatch = 12, kRowsOfWarp = kRows / kWarps;
  const int row_chunks = p.dim / 8, lane_chunks = (row_chunks + kWarpSize - 1) / kWarpSize;
  for (int batch = 0; batch < kRowsOfWarp * lane_chunks; batch += kBatch) {
    const auto row_at = [&](int i) { return warp + (batch + i) / lane_chunks * kWarps; };
    const auto chunk_at = [&](int i) { return lane + (batch + i) % lane_chunks * kWarpSize; };
    uint4 eights[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t pair = first_pair + min(row_at(i), count - 1);
      const Act* const from = static_cast<const Act*>(p.q) + row_of(pair) * p.q_stride + head_of(pair) * p.dim;
      if (chunk_at(i) < row_chunks) eights[i] = *reinterpret_cast<const uint4*>(from + chunk_at(i) * 8);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row_at(i) >= kRows || chunk_at(i) >= row_chunks) continue;
      uint4 eight = eights[i];
      eight = {AsF16Pair<Act>(eight.x), AsF16Pair<Act>(eight.y), AsF16Pair<Act>(eight.z), AsF16Pair<Act>(eight.w)};
      if (row_at(i) >= count) eight = {0, 0, 0, 0};
      *reinterpret_cast<uint4*>(shared + row_at(i) * at.row_bytes + chunk_at(i) * 16) = eight;
    }
  }

  int position[kRowTiles][2];
  float sums[kRowTiles][2 * kColPairs][4] = {};
  float largest[kRowTiles][2], total[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = min((row_group * kRowTiles + r) * 16 + h * 8 + g, count - 1);
      position[r][h] = kDecode ? block_last : p.first_position + static_cast<int>((first_pair + i) / p.num_heads);
      largest[r][h] = -INFINITY;
      total[r][h] = 0.0f;
    }
  }
  // This warp's columns: pairs of column tiles [first_col_pair, first_col_pair + col_pairs).
  const int all_pairs = p.values / 16, most_pairs = (all_pairs + kColGroups - 1) / kColGroups;
  const int first_col_pair = col_group * most_pairs, col_pairs = max(0, min(most_pairs, all_pairs - first_col_pair));
  float* const group_scores = reinterpret_cast<float*>(shared + at.scores_at) + row_group * kRowTiles * 16 * kScorePitch;

  for (int tile = 0; tile < num_tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();  // this tile is there, and nobody still reads the one before it or its scores
    const int first = first_key + tile * kKeys;
    unsigned char* const keys = shared + at.tiles_at + (kQ8 ? 0 : tile % 2 * kKeys * at.row_bytes);
    if constexpr (kQ8) {
      WidenTile<kWarps>(shared + at.raw_at, p.dim, at.row_bytes, first, begin, end, keys);
      __syncthreads();
    }
    if (tile + 1 < num_tiles) fetch(tile + 1);
    LatentScores<kRowTiles>(shared + row_group * kRowTiles * 16 * at.row_bytes, keys + col_group * 8 * at.row_bytes, at.row_bytes,
                            p.dim / 16, group_scores + col_group * 8);
    __syncthreads();

    float scores[kRowTiles][kKeys / 8][4];
    const bool masked = first + kKeys > block_first + 1 || (p.window > 0 && first <= block_last - p.window);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 two = *reinterpret_cast<const float2*>(group_scores + (r * 16 + h * 8 + g) * kScorePitch + t * 8 + q * 2);
          scores[r][t][2 * h] = two.x, scores[r][t][2 * h + 1] = two.y;
        }
        if (!masked) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + t * 8 + q * 2 + i % 2, row = position[r][i / 2];
          if (key > row || (p.window > 0 && key <= row - p.window)) scores[r][t][i] = -INFINITY;
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
        float now = -INFINITY;
#pragma unroll
        for (int t = 0; t < kKeys / 8; ++t) now = fmaxf(now, fmaxf(scores[r][t][2 * h], scores[r][t][2 * h + 1]));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
        now = fmaxf(largest[r][h], now);
        const float base = now == -INFINITY ? 0.0f : now, minus = -base * p.scale_log2;
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
        for (int d = 0; d < 2 * kColPairs; ++d) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[r][d][i] *= factor[r][i / 2];
        }
      }
    }

    // Weights times values: matrices of one ldmatrix are keys 0-7 and 8-15 of a step, columns 0-7 of a pair; the same of 8-15.
    const uint32_t b_base =
        SharedAddress(keys) + (lane / 8 % 2 * 8 + lane % 8) * at.row_bytes + lane / 16 * 16 + first_col_pair * 32;
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const float(&left)[4] = scores[r][2 * step], (&right)[4] = scores[r][2 * step + 1];
        a[r][0] = PackF16(left[0], left[1]);
        a[r][1] = PackF16(left[2], left[3]);
        a[r][2] = PackF16(right[0], right[1]);
        a[r][3] = PackF16(right[2], right[3]);
      }
#pragma unroll
      for (int pair = 0; pair < kColPairs; ++pair) {
        if (pair >= col_pairs) break;
        uint32_t b[4];
        LoadMatrix4Transposed(b, b_base + step * 16 * at.row_bytes + pair * 32);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          MmaF16(sums[r][2 * pair], a[r], b[0], b[1]);
          MmaF16(sums[r][2 * pair + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = total[r][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int i = (row_group * kRowTiles + r) * 16 + h * 8 + g;
      if (i >= count) continue;
      const int64_t pair = first_pair + i, head = head_of(pair);
      const float scaled = largest[r][h] * p.scale_log2;
      const int first_col = first_col_pair * 16 + q * 2;
      if constexpr (kDecode) {
        const int64_t cut = (first_row * p.num_heads + head) * p.max_cuts + blockIdx.x;
        if (col_group == 0 && q == 0) p.stats[cut] = float2{scaled, sum};
#pragma unroll
        for (int d = 0; d < 2 * kColPairs; ++d) {
          if (d >= 2 * col_pairs) break;
          *reinterpret_cast<float2*>(p.sums + cut * p.values + first_col + d * 8) =
              float2{sums[r][d][2 * h], sums[r][d][2 * h + 1]};
        }
      } else {
        float scale = JoinSink(p.sinks, head, scaled, sum);
        scale /= sum;
        Act* const out = static_cast<Act*>(p.out) + row_of(pair) * p.out_stride + head * p.values + first_col;
#pragma unroll
        for (int d = 0; d < 2 * kColPairs; ++d) {
          if (d >= 2 * col_pairs) break;
          alignas(4) Act two[2] = {FromFloat<Act>(sums[r][d][2 * h] * scale), FromFloat<Act>(sums[r][d][2 * h + 1] * scale)};
          *reinterpret_cast<uint32_t*>(out + d * 8) = *reinterpret_cast<const uint32_t*>(two);
        }
      }
    }
  }
}

using JoinOfManyHeads = JoinShape<512, kMaxLatentValues / 4>;
using JoinOfFewHeads = JoinShape<256, 8>;

// Grid: [rows * heads, ceil(values / kColumns)].
template <typename Act, typename Join>
__global__ void __launch_bounds__(Join::kThreads) LatentJoinKernel(LatentParams p) {
  AwaitLaunchesBefore();
  const int64_t row = blockIdx.x / p.num_heads;
  const int head = static_cast<int>(blockIdx.x % p.num_heads);
  const int cuts = LatentCutsOf(p.places.positions[row], p.window, p.most_cuts).count;
  const int64_t first_cut = (row * p.num_heads + head) * p.max_cuts;
  const float sink = p.sinks != nullptr ? p.sinks[head] * kLog2E : -INFINITY;
  JoinCuts<Join>(p.stats + first_cut, p.sums + first_cut * p.values, cuts, p.values,
                 static_cast<int>(blockIdx.y) * Join::kColumns, sink,
                 static_cast<Act*>(p.out) + row * p.out_stride + static_cast<int64_t>(head) * p.values);
}

int SharedBytesOfDevice() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess ? bytes : 0;
}

// (row, head) pairs of a block for `pairs` of them that can share one.
int RowsOfBlock(const AttentionArgs& args, int64_t pairs) {
  const LatentShared wide = LatentSharedOf(64, static_cast<int>(args.cache.head_dim), args.cache.dtype == DType::kQ8_0);
  return pairs >= kWideRows && wide.bytes <= SharedBytesOfDevice() ? 64 : 16;
}

// Cuts of a decoded row: with its tiles of heads they fill a GPU of some 130 multiprocessors once. 16 rows of LatentKernel take
// half of one. It depends on the heads and on the cache alone, so that a row's bits do.
int64_t MostCuts(int64_t num_heads) {
  return num_heads >= kWideRows ? CeilDiv(128, CeilDiv(num_heads, 64)) : 256 / CeilDiv(num_heads, 16);
}
// Of latent_few_heads.cu: a block has enough in flight for a multiprocessor, and a cut's sums are written and read once more.
int64_t MostCutsOfFewHeads(int64_t num_heads) { return CeilDiv(128, CeilDiv(num_heads, 16)); }

int64_t SumsBytes(int64_t rows, int64_t num_heads, int64_t cuts, int64_t values) {
  return AlignUp(rows * num_heads * cuts * values * 4, 16);
}

LatentParams ParamsOf(const AttentionArgs& args) {
  LatentParams p = {};
  p.q = args.q.data;
  p.out = args.out.data;
  p.q_stride = args.q.stride;
  p.out_stride = args.out.stride;
  p.cache = args.cache.keys;
  p.num_blocks = args.cache.num_blocks;
  p.dim = static_cast<int>(args.cache.head_dim);
  p.values = static_cast<int>(args.latent_values);
  p.num_heads = static_cast<int>(args.num_heads);
  p.window = static_cast<int>(args.window);
  p.sinks = args.sinks;
  p.scale_log2 = args.scale * kLog2E;
  return p;
}

template <int kRows, bool kDecode>
cudaError_t Launch(const AttentionArgs& args, const LatentParams& p, dim3 grid, cudaStream_t stream) {
  return WithActivation(args.q.dtype, [&](auto act_type) {
    using Act = decltype(act_type);
    const bool q8 = args.cache.dtype == DType::kQ8_0;
    const auto kernel = q8 ? LatentKernel<kRows, Act, true, kDecode> : LatentKernel<kRows, Act, false, kDecode>;
    const int bytes = LatentSharedOf(kRows, p.dim, q8).bytes;
    FERRY_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    constexpr int kThreads = LatentShape<kRows>::kThreads;
    if constexpr (kDecode) return LaunchOverlapping(kernel, grid, kThreads, LaunchPlace{stream, bytes}, p);
    kernel<<<grid, kThreads, bytes, stream>>>(p);
    return cudaGetLastError();
  });
}

template <typename Join>
cudaError_t LaunchJoin(const AttentionArgs& args, const LatentParams& p, cudaStream_t stream) {
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.q.rows * args.num_heads, CeilDiv(p.values, Join::kColumns), 1, &grid));
  return WithActivation(args.q.dtype, [&](auto act_type) {
    return LaunchOverlapping(LatentJoinKernel<decltype(act_type), Join>, grid, Join::kThreads, stream, p);
  });
}

// Whether latent_attention_wgmma.cu has a kernel for it.
bool ByWarpgroups(const AttentionArgs& args) {
  return args.warpgroups && args.cache.dtype == DType::kF16 && args.cache.head_dim == 576 && args.latent_values == 512;
}

bool Computable(const AttentionArgs& args) {
  return args.num_heads >= 1 && args.cache.num_kv_heads == 1 &&
         LatentAttentionLacks(args.cache.head_dim, args.latent_values, args.cache.dtype) == nullptr;
}

}  // namespace

const char* LatentAttentionLacks(int64_t key_dim, int64_t values, DType cache_type) {
  if (key_dim % 16 != 0 || values % 16 != 0 || values > key_dim) return "keys and values of multiples of 16 numbers";
  if (values < 16 || values > kMaxLatentValues || key_dim > 4096) return "up to 512 numbers of a value";
  const bool q8 = cache_type == DType::kQ8_0;
  if (q8 && key_dim % kKvQuant != 0) return "keys of multiples of 32 numbers in Q8_0";
  if (LatentSharedOf(16, static_cast<int>(key_dim), q8).bytes <= SharedBytesOfDevice()) return nullptr;
  return "keys that fit into a block's shared memory (94 KiB for 576 numbers)";
}

cudaError_t LaunchLatentPrefill(const AttentionArgs& args, int64_t first_position, const int32_t* table, int64_t table_size,
                                cudaStream_t stream) {
  if (args.q.rows == 0) return cudaSuccess;
  if (!Computable(args) || table_size < 1 || first_position < 0 || first_position + args.q.rows > 0x7fffffff - 64) {
    return cudaErrorInvalidValue;
  }
  LatentParams p = ParamsOf(args);
  p.table = table;
  p.table_size = static_cast<int>(table_size);
  p.first_position = static_cast<int>(first_position);
  p.pairs = args.q.rows * p.num_heads;
  const bool warpgroups = ByWarpgroups(args);
  const int rows = warpgroups ? 64 : RowsOfBlock(args, kWideRows);
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(p.pairs, rows), 1, 1, &grid));
  if (warpgroups) return LaunchLatentWgmma(p, args.q.dtype, /*decode=*/false, grid, stream);
  return rows == 64 ? Launch<64, false>(args, p, grid, stream) : Launch<16, false>(args, p, grid, stream);
}

int64_t LatentDecodeWorkspaceBytes(int64_t rows, int64_t num_heads, int64_t values, int64_t window, int64_t max_position) {
  const int64_t cuts = MaxLatentCuts(max_position, window, MostCuts(num_heads));
  return SumsBytes(rows, num_heads, cuts, values) + rows * num_heads * cuts * static_cast<int64_t>(sizeof(float2));
}

cudaError_t LaunchLatentDecode(const AttentionArgs& args, const DevicePlaces& places, int64_t max_position, void* workspace,
                               cudaStream_t stream) {
  if (args.q.rows == 0) return cudaSuccess;
  if (!Computable(args) || max_position < 0 || max_position > 0x7fffffff - 256) return cudaErrorInvalidValue;
  LatentParams p = ParamsOf(args);
  p.places = places;
  const bool few_heads = LatentFewHeadsTakes(args, SharedBytesOfDevice());
  p.most_cuts = static_cast<int>(few_heads ? MostCutsOfFewHeads(args.num_heads) : MostCuts(args.num_heads));
  p.max_cuts = static_cast<int>(MaxLatentCuts(max_position, args.window, p.most_cuts));
  p.sums = static_cast<float*>(workspace);
  p.stats = reinterpret_cast<float2*>(static_cast<std::byte*>(workspace) +
                                      SumsBytes(args.q.rows, args.num_heads, p.max_cuts, p.values));
  const int rows = RowsOfBlock(args, args.num_heads);
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(p.max_cuts, CeilDiv(p.num_heads, rows), args.q.rows, &grid));
  if (few_heads) {
    FERRY_CUDA_RETURN_IF_ERROR(LaunchLatentFewHeads(p, args.q.dtype, grid, stream));
  } else if (rows == 64 && ByWarpgroups(args)) {
    FERRY_CUDA_RETURN_IF_ERROR(LaunchLatentWgmma(p, args.q.dtype, /*decode=*/true, grid, stream));
  } else {
    FERRY_CUDA_RETURN_IF_ERROR(rows == 64 ? (Launch<64, true>(args, p, grid, stream))
                                          : (Launch<16, true>(args, p, grid, stream)));
  }
  // As the number of cuts, the way of joining depends on the heads alone.
  return args.num_heads >= kWideRows ? LaunchJoin<JoinOfManyHeads>(args, p, stream) : LaunchJoin<JoinOfFewHeads>(args, p, stream);
}

}  // namespace ferry::cuda
