#pragma once

// Products of few rows: every weight is read once from memory, straight into the registers of the warp that uses it.
//
// Bound: bytes of the tasks' matrices / device memory rate. A block owns 16 rows of weights (of gate and up alike) and
// its warps share the columns, so that even a 2880 x 2880 matrix gives every multiprocessor more than one block.
//
// Each group of types has a source of its own that instantiates LaunchFew, so that they compile side by side.

#include <algorithm>

#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/product_device_code.cuh"
#include "kernels/cuda/products_dot.cuh"
#include "kernels/cuda/row_decoder.cuh"

namespace ferry::cuda {

constexpr int kExpertWarps = 4;
// Of a narrow matrix each of four warps had one or two groups of columns, and what surrounds them was half of its instructions.
constexpr int kNarrowWarps = 2;
constexpr int64_t kNarrowCols = 1024;
// A dense matrix alone has too few blocks to keep a GPU's memory busy: with twice the warps 8.5 instead of 10.8 us for 5120 x
// 2880 in Q8_0 on an H100. It depends on the shape alone, so that a row has the same bits beside any number of others.
constexpr int kDenseWarps = 8;
constexpr int64_t kMaxDenseRows = 16384;  // of such a matrix
// With up to 8 rows: 80 registers a thread; bytes on their way are what counts. Two types would spill too many of them.
template <DType kType>
constexpr int kWarpsPerSm = kType == DType::kQ5_K || kType == DType::kIQ5_K ? 16 : 24;
constexpr int kGroupBlocks = 4;  // blocks of 32 columns that a warp takes at a time: lane (g, q) holds block q of rows g, g + 8
constexpr int kPitch = 20;       // floats from token to token in shared memory: the 32 lanes of a store hit 32 banks

// Whether the code of a kernel is wanted: types beside the direct ones are decoded to F16 only for GPUs without bf16 products.
template <DType kType, typename Act>
__host__ __device__ constexpr bool IsCompiledFor(int capability) {
  return kIsDirect<kType> || kIsBf16<Act> == (capability >= 80);
}

// A block of ProductsFewKernel. Lane (g, q) decodes whole blocks of 32 columns, so the columns of a product are permuted: product
// j takes elements 4j..4j+3 of block q from lane q, of weights and rows alike.
template <DType kType, typename Act, bool kFused, int kTokenTiles, int kRowTiles, int kWarps>
__device__ __forceinline__ void ProductsFew(const ProductParams& params) {
  using Row = RowOf<kType, Act>;
  // Of direct types a warp takes gate and up together. Decoding the others needs so many registers that half of the warps take
  // gate and half take up, each with the next columns on their way while it decodes.
  constexpr bool kSplit = kFused && !kIsDirect<kType>;
  constexpr int kMatrices = kFused ? 2 : 1, kShare = kSplit ? kWarps / 2 : kWarps;  // warps of a matrix
  constexpr int kTiles = (kSplit ? 1 : kMatrices) * kRowTiles;                      // of a warp; tile m: row tile m % kRowTiles
  __shared__ float sums[kWarps][kTiles][8 * kTokenTiles][kPitch];

  const ProductTask& task = params.tasks[blockIdx.y];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
  const int col_blocks = params.k / 32, groups = (col_blocks + kGroupBlocks - 1) / kGroupBlocks;
  const int row_tiles = (params.n + 15) / 16, first_tile = blockIdx.x * kRowTiles;

  RowTile tiles[kTiles];
  float headers[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const bool second = kSplit ? warp >= kShare : m >= kRowTiles;
    const ProductMatrix& matrix = second ? params.second : params.first;
    tiles[m] = RowTileOf<kType>(task.weights + matrix.codes, task.weights + matrix.scales, task.weights + matrix.headers,
                                min(first_tile + m % kRowTiles, row_tiles - 1), col_blocks);
#pragma unroll
    for (int half = 0; half < 2; ++half) headers[m][half] = Row::Header(tiles[m], g + 8 * half);
  }
  struct Raw {
    typename Row::Raw rows[kTiles][2];
  };
  const auto load = [&](int group, Raw* raw) {
    const int block = group * kGroupBlocks + q;
    const bool valid = block < col_blocks;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (valid) {
          Row::Load(tiles[m], block, g + 8 * half, &raw->rows[m][half]);
        } else {
          Row::Clear(&raw->rows[m][half]);
        }
      }
    }
  };
  // Registers for one more group of codes.
  constexpr bool kAhead = kIsDirect<kType> ? Format<kType>::kCodeBytes * kTiles <= 64 : sizeof(Raw) <= 80;
  Raw raw;
  if (kAhead) load(warp % kShare, &raw);  // on its way while the rows are looked up

  AwaitLaunchesBefore();
  const TaskRows rows = RowsOf(params, task);
  if (rows.count <= 0) return;
  const Act* tokens[kTokenTiles];
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
    const int64_t row = InputRow(params, task, rows, 8 * t + g);
    tokens[t] = row < 0 ? nullptr : static_cast<const Act*>(params.in) + row * params.in_stride + q * 32;
  }

  // The address of this thread's first output and the value added to it, read now while weights arrive.
  constexpr int kColumns = 16 * kRowTiles, kThreads = kWarps * kWarpSize;
  static_assert(kThreads % kColumns == 0, "a thread has one column");
  const int column = first_tile * 16 + threadIdx.x % kColumns;
  const bool in_matrix = column < params.n;
  const float* first_bias = BiasOf(params, task, params.first);
  const float* second_bias = kFused ? BiasOf(params, task, params.second) : nullptr;
  const float biases[2] = {in_matrix && first_bias != nullptr ? first_bias[column] : 0.0f,
                           in_matrix && second_bias != nullptr ? second_bias[column] : 0.0f};
  const auto first_out_row = static_cast<int>(OutputRow(params, task, rows, threadIdx.x / kColumns));

  float sum[kTiles][kTokenTiles][4] = {};
  for (int group = warp % kShare; group < groups; group += kShare) {
    if (!kAhead) load(group, &raw);
    uint4 values[kTokenTiles][4];
    const bool in_range = group * kGroupBlocks + q < col_blocks;
    // Not by __ldg: the launch before may still have been writing them when this one began.
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const uint4* source = reinterpret_cast<const uint4*>(tokens[t] + group * kGroupBlocks * 32);
      const bool valid = tokens[t] != nullptr && in_range;
#pragma unroll
      for (int v = 0; v < 4; ++v) values[t][v] = valid ? source[v] : uint4{0, 0, 0, 0};
    }
    Raw next;
    if (kAhead) load(group + kShare, &next);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      uint32_t low[16], high[16];
      Row::Decode(raw.rows[m][0], group * kGroupBlocks + q, headers[m][0], low);
      Row::Decode(raw.rows[m][1], group * kGroupBlocks + q, headers[m][1], high);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const uint32_t a[4] = {low[4 * v], high[4 * v], low[4 * v + 1], high[4 * v + 1]};
        const uint32_t b[4] = {low[4 * v + 2], high[4 * v + 2], low[4 * v + 3], high[4 * v + 3]};
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          Mma<Act>(sum[m][t], a, values[t][v].x, values[t][v].y);
          Mma<Act>(sum[m][t], b, values[t][v].z, values[t][v].w);
        }
      }
    }
    if (kAhead) raw = next;
  }

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[warp][m][8 * t + 2 * q + (i & 1)][g + 8 * (i >> 1)] = sum[m][t][i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kColumns * min(rows.count, 8 * kTokenTiles); i += kThreads) {
    const int token = i / kColumns, tile = i % kColumns / 16, row = i % 16;
    const int64_t out_row = i < kThreads ? first_out_row : OutputRow(params, task, rows, token);
    if (!in_matrix || out_row < 0) continue;
    float totals[kMatrices];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kShare; ++w) {  // always in this order
        total += kSplit ? sums[m * kShare + w][tile][token][row] : sums[w][m * kRowTiles + tile][token][row];
      }
      totals[m] = total * kSumScale<kType, Act> + biases[m];
    }
    if constexpr (kFused) {
      StoreOutput(params, out_row, column, Glu(totals[0], totals[1], params));
    } else {
      StoreOutput(params, out_row, column, totals[0]);
    }
  }
}

// Grid: [row tiles of a matrix / kRowTiles, tasks]. Block: kWarps warps. Tasks have at most 8 * kTokenTiles rows.
template <DType kType, typename Act, bool kFused, int kTokenTiles, int kRowTiles, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarpSize, kTokenTiles == 1 ? kWarpsPerSm<kType> / kWarps : 1)
    ProductsFewKernel(const __grid_constant__ ProductParams params) {
#ifdef __CUDA_ARCH__
  if constexpr (IsCompiledFor<kType, Act>(__CUDA_ARCH__ / 10)) {
    ProductsFew<kType, Act, kFused, kTokenTiles, kRowTiles, kWarps>(params);
  }
#endif
}

template <DType kType, typename Act, bool kFused, int kTokenTiles, int kRowTiles, int kWarps>
cudaError_t LaunchTiles(const ProductParams& params, cudaStream_t stream) {
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(params.n, 16 * kRowTiles), params.num_tasks, 1, &grid));
  constexpr auto kKernel = ProductsFewKernel<kType, Act, kFused, kTokenTiles, kRowTiles, kWarps>;
  if (params.overlaps) return LaunchOverlapping(kKernel, grid, kWarps * kWarpSize, stream, params);
  kKernel<<<grid, kWarps * kWarpSize, 0, stream>>>(params);
  return cudaGetLastError();
}

template <DType kType, typename Act, bool kFused, int kWarps>
cudaError_t LaunchFewRows(const ProductParams& params, cudaStream_t stream) {
  int most_rows = 0;
  for (int t = 0; t < params.num_tasks; ++t) most_rows = std::max(most_rows, params.tasks[t].rows);
  if (most_rows == 0) return cudaSuccess;
  if (most_rows > kFewTaskRows) return cudaErrorInvalidValue;
  if (most_rows <= 8) return LaunchTiles<kType, Act, kFused, 1, 1, kWarps>(params, stream);
  // Rows are read again by every block, so with more of them a block takes more weights.
  if constexpr (kIsDirect<kType>) {
    if (most_rows <= 16) return LaunchTiles<kType, Act, kFused, 2, 2, kWarps>(params, stream);
  }
  constexpr int kRowTiles = kFused || !kIsDirect<kType> ? 1 : 2;
  return LaunchTiles<kType, Act, kFused, 4, kRowTiles, kWarps>(params, stream);
}

// Products with one dense matrix.
template <DType kType, typename Act>
cudaError_t LaunchFewDense(const ProductParams& params, cudaStream_t stream) {
  return params.n <= kMaxDenseRows ? LaunchFewRows<kType, Act, false, kDenseWarps>(params, stream)
                                   : LaunchFewRows<kType, Act, false, kExpertWarps>(params, stream);
}

// The tasks of `params` with weights of one of `kTypes`; cudaErrorInvalidValue for another type.
template <DType... kTypes>
cudaError_t LaunchFew(TypeList<kTypes...> types, const ProductParams& params, bool fused, cudaStream_t stream) {
  const bool experts = params.offsets != nullptr;
  cudaError_t result = cudaErrorInvalidValue;
  WithFormat(types, params.first.type, [&]<DType kType>() {
    if constexpr (kIsDot<kType>) {
      if (experts) {
        result = fused ? LaunchDot<kType, true>(params, stream) : LaunchDot<kType, false>(params, stream);
        return;
      }
    }
    result = WithActivation(params.act_type, [&](auto act) {
      using Act = decltype(act);
      if (!IsCompiledFor<kType, Act>(params.capability)) return cudaErrorInvalidValue;
      if (!experts) return LaunchFewDense<kType, Act>(params, stream);
      if constexpr (kIsDot<kType>) {
        return cudaErrorInvalidValue;
      } else {
        if (!fused && params.k <= kNarrowCols) return LaunchFewRows<kType, Act, false, kNarrowWarps>(params, stream);
        if (!fused) return LaunchFewRows<kType, Act, false, kExpertWarps>(params, stream);
        return LaunchFewRows < kType, Act, true, kIsDirect<kType> ? kExpertWarps : 2 * kExpertWarps > (params, stream);
      }
    });
  });
  return result;
}

}  // namespace ferry::cuda
