// Products of any number of rows with mma.sync: every GPU from capability 7.5.
//
// Bound: the tensor cores' rate at mma.sync, less the decoding, which runs on the other units. A warp owns 32 rows of
// weights (16 of gate and the same 16 of up) and decodes them for itself, so weights never pass through shared memory;
// the rows of the tile do, two groups of columns deep.

#include "kernels/cuda/product_device_code.cuh"

namespace ferry::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 64;                         // of a tile: 2 x 8 x 4 sums in registers
constexpr int kGroupBlocks = 4;                     // blocks of 32 columns at a time
constexpr int kGroupBytes = 32 * kGroupBlocks * 2;  // of one token
constexpr int kChunks = kGroupBytes / 16;

// Where chunk `chunk` (eight elements) of a token lies in shared memory: permuted so that the eight lanes of a 16-byte
// load phase, which are two tokens by the four blocks, hit all banks.
__device__ inline int ChunkOffset(int token, int chunk) {
  const int block = chunk / 4, part = chunk % 4;
  return token * kGroupBytes + 16 * (4 * block + (part ^ ((block >> 1) | ((token & 1) << 1))));
}

// Grid: [tiles]. Block: kWarps warps; a panel is 128 rows of gate and up each, or 256 rows of the one matrix.
template <DType kType, typename Act, bool kFused>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1) ProductsMmaKernel(const __grid_constant__ ProductParams params) {
  using Codes = Decoder<kType, Act>;
  constexpr int kPanelRows = kFused ? 16 * kWarps : 32 * kWarps;
  __shared__ alignas(128) std::byte staged[2][kTokens * kGroupBytes];
  __shared__ int64_t in_rows[kTokens];

  const int panels = (params.n + kPanelRows - 1) / kPanelRows;
  const ProductTile tile = TileOf(params, blockIdx.x, kTokens, panels);
  const ProductTask& task = params.tasks[tile.task];
  const TaskRows rows = RowsOf(params, task);
  if (rows.count <= tile.first) return;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
  if (threadIdx.x < kTokens) {
    const int i = threadIdx.x;
    in_rows[i] = i < tile.count ? InputRow(params, task, rows, tile.first + i) : -1;
  }
  __syncthreads();

  const int col_blocks = params.k / 32, groups = (col_blocks + kGroupBlocks - 1) / kGroupBlocks;
  const int row_tiles = (params.n + 15) / 16;
  int row_tile[2];
  const std::byte* codes[2];
  const std::byte* scales[2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const ProductMatrix& matrix = kFused && m == 1 ? params.second : params.first;
    row_tile[m] = kFused ? tile.panel * kWarps + warp : (tile.panel * kWarps + warp) * 2 + m;
    const int64_t row = static_cast<int64_t>(min(row_tile[m], row_tiles - 1)) * col_blocks * 16 + g;
    codes[m] = task.weights + matrix.codes + row * Format<kType>::kCodeBytes;
    scales[m] = task.weights + matrix.scales + row * Format<kType>::kScaleBytes;
  }

  struct Raw {
    uint4 codes[2][2][Codes::kVectors];
    uint32_t scales[2][2];
  };
  const auto load = [&](int group, Raw* raw) {
    const int block = group * kGroupBlocks + q;
    const bool valid = block < col_blocks;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at = static_cast<int64_t>(block) * 16 + 8 * half;
        const uint4* source = reinterpret_cast<const uint4*>(codes[m] + at * Format<kType>::kCodeBytes);
#pragma unroll
        for (int v = 0; v < Codes::kVectors; ++v) raw->codes[m][half][v] = valid ? __ldg(source + v) : uint4{0, 0, 0, 0};
        raw->scales[m][half] = valid ? Codes::LoadScaleBits(scales[m] + at * Format<kType>::kScaleBytes) : 0;
      }
    }
  };
  const auto stage = [&](int group) {
#pragma unroll
    for (int i = 0; i < kTokens * kChunks / (kWarps * kWarpSize); ++i) {
      const int index = i * kWarps * kWarpSize + threadIdx.x, token = index / kChunks, chunk = index % kChunks;
      const int64_t row = in_rows[token], column = static_cast<int64_t>(group) * 32 * kGroupBlocks + chunk * 8;
      const bool valid = row >= 0 && column < params.k;
      const Act* source = static_cast<const Act*>(params.in) + (valid ? row * params.in_stride + column : 0);
      CopyAsync16(&staged[group & 1][ChunkOffset(token, chunk)], source, valid);
    }
    CopyAsyncCommit();
  };

  float sum[2][kTokens / 8][4] = {};
  constexpr bool kAhead = Format<kType>::kCodeBytes <= 32;  // registers for one more group of codes
  Raw raw;
  stage(0);
  if (kAhead) load(0, &raw);
  for (int group = 0; group < groups; ++group) {
    if (group + 1 < groups)
      stage(group + 1);
    else
      CopyAsyncCommit();
    if (!kAhead) load(group, &raw);
    uint32_t weights[2][2][16];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Codes::Block(raw.codes[m][half], Codes::MakeScale(raw.scales[m][half]), weights[m][half]);
      }
    }
    if (kAhead) load(group + 1, &raw);
    CopyAsyncWait<1>();
    __syncthreads();
    const std::byte* tokens = staged[group & 1];
#pragma unroll
    for (int t = 0; t < kTokens / 8; ++t) {
      if (8 * t >= tile.count) break;
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const uint4 values = *reinterpret_cast<const uint4*>(tokens + ChunkOffset(8 * t + g, 4 * q + v));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t(&low)[16] = weights[m][0], (&high)[16] = weights[m][1];
          const uint32_t a[4] = {low[4 * v], high[4 * v], low[4 * v + 1], high[4 * v + 1]};
          const uint32_t b[4] = {low[4 * v + 2], high[4 * v + 2], low[4 * v + 3], high[4 * v + 3]};
          Mma<Act>(sum[m][t], a, values.x, values.y);
          Mma<Act>(sum[m][t], b, values.z, values.w);
        }
      }
    }
    __syncthreads();
  }

  const float* first_bias = BiasOf(params, task, params.first);
  const float* second_bias = kFused ? BiasOf(params, task, params.second) : nullptr;
#pragma unroll
  for (int t = 0; t < kTokens / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 8 * t + 2 * q + (i & 1);
      const int64_t out_row = token < tile.count ? OutputRow(params, task, rows, tile.first + token) : -1;
      if (out_row < 0) continue;
#pragma unroll
      for (int m = 0; m < (kFused ? 1 : 2); ++m) {
        const int column = row_tile[m] * 16 + g + 8 * (i >> 1);
        if (column >= params.n) continue;
        float value = sum[m][t][i] * kSumScale<kType, Act> + (first_bias != nullptr ? first_bias[column] : 0.0f);
        if constexpr (kFused) {
          const float up = sum[1][t][i] * kSumScale<kType, Act> + (second_bias != nullptr ? second_bias[column] : 0.0f);
          value = Glu(value, up, params);
        }
        StoreOutput(params, out_row, column, value);
      }
    }
  }
}

template <DType kType, typename Act, bool kFused>
cudaError_t Launch(ProductParams& params, cudaStream_t stream) {
  AssignTiles(&params, kTokens, kFused ? 16 * kWarps : 32 * kWarps);
  if (params.num_tiles == 0) return cudaSuccess;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(params.num_tiles, 1, 1, &grid));
  ProductsMmaKernel<kType, Act, kFused><<<grid, kWarps * kWarpSize, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int ProductCodeCapability() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, ProductsMmaKernel<DType::kQ8_0, __half, true>) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return attributes.ptxVersion;
}

cudaError_t LaunchProductsMma(ProductParams params, bool fused, cudaStream_t stream) {
  return WithActivation(params.act_type, [&](auto act) {
    using Act = decltype(act);
    return WithDirectType(params.first.type, [&]<DType kType>() {
      return fused ? Launch<kType, Act, true>(params, stream) : Launch<kType, Act, false>(params, stream);
    });
  });
}

}  // namespace ferry::cuda
