#pragma once

// Products of few rows in whole numbers, for the types whose values are whole codes with a scale, and perhaps a minimum, for 16
// or 32 columns (row_decoder.cuh).
//
// Bound: bytes of the tasks' matrices / device memory rate. What stands against it is the number of instructions: while 1,024
// codes of Q4_K arrive at 4.2 TB/s, the four schedulers of a multiprocessor of an H200 have time for 127 of a warp's. Turning
// those codes into BF16 for tensor cores takes about 120, and what surrounds it as much again for narrow matrices. Here codes
// stay bytes, four to a register:
//
//   up to kDotRows rows   a lane multiplies its own codes, by dp4a: 65 instructions for Q4_K
//   more                  tensor cores do, eight rows at once: 82 for Q4_0, straight from registers
//                         (whole_fragments.cuh); other types' codes change places in shared memory, about 110
//
// Whole sums are exact, and both then scale and add them by the same operations in the same order: a row has the same bits beside
// any number of others.
//
// A warp has two row tiles: gate and up of the same outputs, or two neighbours. A lane decodes one row of them in one half of
// each chunk of 256 columns. Chunks form kParts parts, which are added at the end. Where there are few pairs of row tiles for the
// GPU, the warps of a block take a part each, otherwise a warp takes all of a pair: the same sums.

#include <algorithm>

#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/product_device_code.cuh"
#include "kernels/cuda/whole_fragments.cuh"

namespace ferry::cuda {

constexpr int kParts = kDotWarps;
constexpr int kDotRows = 2;
// Of a block's activations and grid, so that a multiprocessor has three blocks at least.
constexpr int64_t kMaxWholeBytes = 72 * 1024;

struct DotShape {
  int pairs = 0;       // of row tiles that a block takes
  bool split = false;  // whether its warps take a part each of every pair, or all parts of every fourth pair
  int passes = 0;      // over a task's rows
  int rows = 0;        // of a pass, at most
};

// The outputs of a pair of row tiles: 16 columns of a fused product, 32 of another.
template <bool kFused, bool kOneRow>
struct DotOutputs {
  static constexpr int kColumns = kFused ? 16 : 32;
  const ProductParams& params;
  const ProductTask& task;
  const TaskRows& rows;
  const int64_t* places;  // of output rows, unless kOneRow
  int first_row, pair;

  // Output `at` of row t; sum_of(m): its sum in the pair's tile m.
  template <typename SumOf>
  __device__ void Store(int t, int at, const SumOf& sum_of) const {
    const int column = pair * kColumns + at;
    const int64_t out_row = kOneRow ? OutputRow(params, task, rows, first_row + t) : places[t];
    if (column >= params.n || out_row < 0) return;
    const auto with_bias = [&](float sum, const ProductMatrix& matrix) {
      const float* const bias = BiasOf(params, task, matrix);
      return bias == nullptr ? sum : sum + bias[column];
    };
    float out = with_bias(sum_of(kFused ? 0 : at / 16), params.first);
    if constexpr (kFused) out = Glu(out, with_bias(sum_of(1), params.second), params);
    StoreOutput(params, out_row, column, out);
  }
};

// Grid: [parts of the pairs * passes, tasks].
template <DType kType, bool kFused, int kRows, typename Sums>
__device__ __forceinline__ void ProductsDot(const ProductParams& params, const DotShape& shape) {
  extern __shared__ uint4 dynamic[];
  __shared__ GridCopy<RowFormat<kType>> grid;
  __shared__ typename Sums::Staging staging[kDotWarps];
  __shared__ float partial[kDotWarps][2][kDotTiles][kRows][16];
  __shared__ int64_t shared_sources[kRows], places[kRows];
  int64_t one_source[1];
  int64_t* const sources = kRows > 1 ? shared_sources : one_source;
  uint32_t* const numbers = reinterpret_cast<uint32_t*>(dynamic);

  const ProductTask& task = params.tasks[blockIdx.y];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, row = lane % 16, half = lane / 16;
  const int col_blocks = params.k / 32, chunks = (col_blocks + kChunkTiles - 1) / kChunkTiles;
  const int row_words = WholeRowWords(chunks * kChunkTiles);
  const int row_tiles = (params.n + 15) / 16, all_pairs = kFused ? row_tiles : (row_tiles + 1) / 2;
  const int first_row = static_cast<int>(blockIdx.x) % shape.passes * shape.rows;
  const int first_pair = static_cast<int>(blockIdx.x) / shape.passes * shape.pairs;
  const int last_pair = min(first_pair + shape.pairs, all_pairs), pair_step = shape.split ? 1 : kDotWarps;
  const int first_part = shape.split ? warp : 0, last_part = shape.split ? warp + 1 : kParts;
  const auto part_begin = [&](int part) { return (part * chunks + kParts - 1) / kParts; };

  RowTile tiles[kDotTiles];
  float headers[kDotTiles];
  typename Sums::Codes codes[kDotTiles];
  const auto load = [&](int chunk) {
    if (chunk >= part_begin(last_part)) return;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) codes[m].Load(tiles[m], chunk, half, row, col_blocks);
  };
  const auto begin = [&](int pair) {
    if (pair >= last_pair) return;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
      const ProductMatrix& matrix = kFused && m == 1 ? params.second : params.first;
      tiles[m] = RowTileOf<kType>(task.weights + matrix.codes, task.weights + matrix.scales, task.weights + matrix.headers,
                                  kFused ? pair : min(2 * pair + m, row_tiles - 1), col_blocks);
      headers[m] = RowDecoder<kType>::Header(tiles[m], row);
    }
    load(part_begin(first_part));
  };
  const int my_first_pair = first_pair + (shape.split ? 0 : warp);
  begin(my_first_pair);  // on its way while the rows are looked up
  grid.Fill();

  AwaitLaunchesBefore();
  const TaskRows rows = RowsOf(params, task);
  const int count = min(rows.count - first_row, shape.rows);
  if (count <= 0) return;
  // A row's place is looked up once, or by every thread where there is one row, which saves a barrier.
  if constexpr (kRows > 1) {
    if (static_cast<int>(threadIdx.x) < count) {
      sources[threadIdx.x] = InputRow(params, task, rows, first_row + static_cast<int>(threadIdx.x));
      places[threadIdx.x] = OutputRow(params, task, rows, first_row + static_cast<int>(threadIdx.x));
    }
    __syncthreads();
  } else {
    sources[0] = InputRow(params, task, rows, first_row);
  }
  QuantizeRows<Sums::kOrder, typename Sums::Last, kDotThreads>(
      params, [&](int t) { return sources[t]; }, count, chunks * kChunkTiles, numbers);
  __syncthreads();

  const auto wait_for_partial = [&] {
    if (shape.split) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  };
  for (int pair = my_first_pair; pair < last_pair; pair += pair_step) {
    float total[Sums::kCount] = {};
    for (int part = first_part; part < last_part; ++part) {
      float sums[Sums::kCount] = {};
      for (int chunk = part_begin(part); chunk < part_begin(part + 1); ++chunk) {
        const uint32_t* const from = numbers + chunk * kChunkTiles * kWholeWords;
        if constexpr (requires { Sums::kFloats; }) {
          const bool more = chunk + 1 < part_begin(last_part);
          const int tiles_after = more ? col_blocks - (chunk + 1) * kChunkTiles : 0;
          Sums::Add(
              codes, headers, from, row_words, count, staging[warp], sums,
              [&] {
                if (!more) return;
#pragma unroll
                for (int m = 0; m < kDotTiles; ++m) codes[m].LoadScaleWords(tiles[m], chunk + 1, half, row, col_blocks);
              },
              [&](int tile) {
#pragma unroll
                for (int m = 0; m < kDotTiles; ++m) codes[m].LoadNibbles(tiles[m], chunk + 1, tile, tiles_after);
              });
        } else {
          Sums::Add(grid, codes, headers, from, row_words, count, staging[warp], sums);
          load(chunk + 1);
        }
      }
#pragma unroll
      for (int i = 0; i < Sums::kCount; ++i) total[i] += sums[i];
    }
    begin(pair + pair_step);
    const DotOutputs<kFused, kRows == 1> outputs = {params, task, rows, places, first_row, pair};
    if constexpr (Sums::kHoldsHalves) {
      if (!shape.split) {
        Sums::ForEachWhole(total, [&](int t, int at, float first, float second) {
          if (t >= count) return;
          outputs.Store(t, at, [&](int m) { return m == 0 ? first : second; });
          if constexpr (!kFused) outputs.Store(t, 16 + at, [&](int) { return second; });
        });
        continue;
      }
    }
    Sums::ForEach(total, [&](int h, int m, int t, int at, float sum) { partial[warp][h][m][t][at] = sum; });
    wait_for_partial();
    const int thread = shape.split ? static_cast<int>(threadIdx.x) : lane, threads = shape.split ? kDotThreads : kWarpSize;
    for (int i = thread; i < outputs.kColumns * count; i += threads) {
      const int t = i / outputs.kColumns, at = i % outputs.kColumns;
      outputs.Store(t, at, [&](int m) {
        float halves[2] = {};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (shape.split) {
#pragma unroll
            for (int w = 0; w < kDotWarps; ++w) halves[h] += partial[w][h][m][t][at % 16];
          } else {
            halves[h] = partial[warp][h][m][t][at % 16];
          }
        }
        return halves[0] + halves[1];
      });
    }
    wait_for_partial();
  }
}

// Blocks of a multiprocessor: as many as have registers without keeping some in memory.
template <DType kType>
constexpr int kTensorBlocks = 3;
template <DType kType>
requires kHasFragments<kType>
constexpr int kTensorBlocks<kType> = Format<kType>::kTilesPerScale == 1 ? 4 : 3;
template <DType kType, int kRows>
constexpr int kDotBlocks = kRows > kDotRows                                                          ? kTensorBlocks<kType>
                           : kRows == 1 && Format<kType>::kCodeBytes <= 8                            ? 6
                           : kRows == 1 && Format<kType>::kCodeBytes <= 16 && kType != DType::kNVFP4 ? 5
                                                                                                     : 4;

template <DType kType, int kRows>
struct SumsOf {
  using Type = DotSums<kType, kRows>;
};
template <DType kType>
struct SumsOf<kType, kTensorRows> {
  using Type = TensorSums<kType>;
};
template <DType kType>
requires kHasFragments<kType>
struct SumsOf<kType, kTensorRows> {
  using Type = FragmentSums<kType>;
};

template <DType kType, bool kFused, int kRows>
__global__ void __launch_bounds__(kDotThreads, kDotBlocks<kType, kRows>)
    ProductsDotKernel(const __grid_constant__ ProductParams params, const DotShape shape) {
#ifdef __CUDA_ARCH__
  if constexpr (kRows > kDotRows && __CUDA_ARCH__ >= 800) {
    ProductsDot<kType, kFused, kRows, typename SumsOf<kType, kRows>::Type>(params, shape);
  } else {
    ProductsDot<kType, kFused, kRows, DotSums<kType, kRows>>(params, shape);
  }
#endif
}

// How many pairs of row tiles each warp of a block takes where tensor cores multiply. A block first turns its rows into whole
// numbers, which costs as much as kRowShare of a pair for each; few large blocks leave multiprocessors without work at the end.
inline int PairsOfWarp(int pairs, int64_t tasks, int rows, int blocks_at_once) {
  constexpr float kRowShare = 0.056f;  // 333 instructions for 64 blocks of a row; 93 for 1,024 codes by way of shared memory
  constexpr int kMost = 8;
  int best = 1;
  float least = 0;
  for (int each = 1; each <= kMost; ++each) {
    const int64_t blocks = CeilDiv(pairs, each * kDotWarps) * tasks, waves = (blocks + blocks_at_once - 1) / blocks_at_once;
    const float cost = static_cast<float>(waves) * (static_cast<float>(each) + kRowShare * static_cast<float>(rows));
    if (each == 1 || cost < least) best = each, least = cost;
  }
  return best;
}

template <DType kType, bool kFused, int kRows>
cudaError_t LaunchDotRows(const ProductParams& params, int most_rows, cudaStream_t stream) {
  constexpr int kMultiprocessors = 132;  // of an H200; another GPU loses little by another one's number
  constexpr int kBlocksAtOnce = kMultiprocessors * 5;
  const int chunks = CeilDiv(params.k / 32, kChunkTiles);
  const int64_t row_bytes = int64_t{4} * WholeRowWords(chunks * kChunkTiles);
  constexpr int64_t kGridBytes = sizeof(GridCopy<RowFormat<kType>>);
  DotShape shape;
  shape.rows = std::min(most_rows, static_cast<int>(std::clamp<int64_t>((kMaxWholeBytes - kGridBytes) / row_bytes, 1, kRows)));
  shape.passes = CeilDiv(most_rows, shape.rows);
  const int row_tiles = CeilDiv(params.n, 16), pairs = kFused ? row_tiles : CeilDiv(row_tiles, 2);
  const int64_t all_pairs = int64_t{pairs} * params.num_tasks * shape.passes;
  shape.split = all_pairs < int64_t{kBlocksAtOnce} * kDotWarps * 3 / 4;
  const int64_t bytes = row_bytes * shape.rows;
  constexpr auto kKernel = ProductsDotKernel<kType, kFused, kRows>;
  constexpr int64_t kOwnBytes =
      kGridBytes + kDotWarps * (sizeof(typename SumsOf<kType, kTensorRows>::Type::Staging) + kRows * 256) + 256;
  if (shape.split) {
    shape.pairs = 1;
  } else if (kRows > kDotRows) {
    constexpr int64_t kSharedBytes = 227 * 1024;
    const int64_t blocks = std::min<int64_t>(kDotBlocks<kType, kRows>, kSharedBytes / (bytes + kOwnBytes + 1024));
    shape.pairs = kDotWarps * PairsOfWarp(pairs, int64_t{params.num_tasks} * shape.passes, shape.rows,
                                          kMultiprocessors * static_cast<int>(std::max<int64_t>(blocks, 1)));
  } else {
    shape.pairs = kDotWarps * static_cast<int>(std::clamp<int64_t>(all_pairs / kDotWarps / (kBlocksAtOnce * 4), 1, 4));
  }
  if (bytes + kOwnBytes > 48 * 1024) {  // more than a kernel may take unasked
    FERRY_CUDA_RETURN_IF_ERROR(
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(pairs, shape.pairs) * shape.passes, params.num_tasks, 1, &grid));
  if (params.overlaps) return LaunchOverlapping(kKernel, grid, kDotThreads, LaunchPlace{stream, bytes}, params, shape);
  kKernel<<<grid, kDotThreads, bytes, stream>>>(params, shape);
  return cudaGetLastError();
}

template <DType kType, bool kFused>
cudaError_t LaunchDot(const ProductParams& params, cudaStream_t stream) {
  int most_rows = 0;
  for (int t = 0; t < params.num_tasks; ++t) most_rows = std::max(most_rows, params.tasks[t].rows);
  if (most_rows == 0) return cudaSuccess;
  if (most_rows > kFewTaskRows) return cudaErrorInvalidValue;
  if (most_rows == 1) return LaunchDotRows<kType, kFused, 1>(params, most_rows, stream);
  if (most_rows == 2) return LaunchDotRows<kType, kFused, 2>(params, most_rows, stream);
  return LaunchDotRows<kType, kFused, kTensorRows>(params, most_rows, stream);
}

}  // namespace ferry::cuda
