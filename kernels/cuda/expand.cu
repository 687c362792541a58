#include "kernels/cuda/expand.h"
#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/row_decoder.cuh"
#include "kernels/integer_division.h"

namespace ferry::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

// A row's 32 columns: out[i] = elements 2i and 2i + 1.
template <DType kType, typename Act>
__device__ inline void DecodeTo(const RowTile& tile, int block, int row, uint32_t (&out)[16]) {
  using Row = RowOf<kType, Act>;
  typename Row::Raw raw;
  Row::Load(tile, block, row, &raw);
  Row::Decode(raw, block, Row::Header(tile, row), out);
  if constexpr (kSumScale<kType, Act> != 1.0f) {  // 2^64
#pragma unroll
    for (uint32_t& pair : out) pair = MultiplyPairs<Act>(pair, 0x5F805F80u);
  }
}

// Grid: [row tiles * blocks of 32 columns * 16 / kThreads, tasks]. A thread has 32 columns of a row; a warp's numbers are 2 KB in
// a line, and pass through shared memory so that 16 neighbouring bytes belong to neighbouring lanes.
template <DType kType, typename Act>
__global__ void __launch_bounds__(kThreads) ExpandKernel(const __grid_constant__ ExpandParams params) {
  __shared__ uint4 staged[kWarps][4 * kWarpSize];
  const std::byte* const weights = params.weights[blockIdx.y];
  std::byte* const out = params.out + blockIdx.y * params.task_bytes;
  const int col_blocks = params.cols / 32, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t count = static_cast<int64_t>((params.num_rows + 15) / 16) * col_blocks * 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + warp * kWarpSize, i = first + lane;
  if (params.matrix.bias >= 0 && i < params.num_rows) {
    const auto* bias = reinterpret_cast<const float*>(weights + params.matrix.bias);
    reinterpret_cast<float*>(out + params.bias_at)[i] = bias[params.first_row + i];
  }
  if (i < count) {
    const int64_t row_tile = i / (16 * col_blocks);
    const auto rest = static_cast<int>(i % (16 * col_blocks));
    const RowTile tile = RowTileOf<kType>(weights + params.matrix.codes, weights + params.matrix.scales,
                                          weights + params.matrix.headers, params.first_row / 16 + row_tile, col_blocks);
    uint32_t values[16];
    DecodeTo<kType, Act>(tile, rest / 16, rest % 16, values);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      staged[warp][4 * lane + (j ^ ((lane >> 1) & 3))] =
          uint4{values[4 * j], values[4 * j + 1], values[4 * j + 2], values[4 * j + 3]};
    }
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int at = k * kWarpSize + lane, row = at / 4, chunk = at % 4;
    if (first + row < count) {
      *reinterpret_cast<uint4*>(out + first * 64 + at * 16) = staged[warp][4 * row + (chunk ^ ((row >> 1) & 3))];
    }
  }
}

// Grid: [rows, blocks of 32 columns / kThreads]. A thread has 32 columns.
template <DType kType, typename T>
__global__ void EmbedPackedKernel(DeviceTiles table, const int32_t* token_ids, T* x, int64_t stride) {
  using Row = RowDecoder<kType>;
  AwaitLaunchesBefore();
  const int64_t token = token_ids[blockIdx.x];
  const auto col_blocks = static_cast<int>(table.cols / 32), block = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (token < 0 || token >= table.rows || block >= col_blocks) return;
  const RowTile tile =
      RowTileOf<kType>(table.data, table.data + table.scales_offset, table.data + table.rows_offset, token / 16, col_blocks);
  const auto row = static_cast<int>(token % 16);
  typename Row::Raw raw;
  Row::Load(tile, block, row, &raw);
  T* const out = x + blockIdx.x * stride + block * 32;
  Row::template Decode<true>(raw, block, Row::Header(tile, row), [&](int i, float a, float b) {
    out[2 * i] = FromFloat<T>(a);
    out[2 * i + 1] = FromFloat<T>(b);
  });
}

}  // namespace

cudaError_t LaunchExpand(const ExpandParams& params, DType type, cudaStream_t stream) {
  const int64_t count = CeilDiv(params.num_rows, 16) * (params.cols / 32) * 16;
  if (count == 0 || params.num_tasks == 0) return cudaSuccess;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(count, kThreads), params.num_tasks, 1, &grid));
  cudaError_t result = cudaErrorInvalidValue;
  WithFormat(params.matrix.type, [&]<DType kType>() {
    result = WithActivation(type, [&](auto act) {
      ExpandKernel<kType, decltype(act)><<<grid, kThreads, 0, stream>>>(params);
      return cudaGetLastError();
    });
  });
  return result;
}

cudaError_t LaunchEmbedPacked(const DeviceTiles& table, const int32_t* token_ids, const DeviceRows& x, cudaStream_t stream) {
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(x.rows, CeilDiv(table.cols / 32, kThreads), 1, &grid));
  cudaError_t result = cudaErrorInvalidValue;
  WithFormat(table.dtype, [&]<DType kType>() {
    if constexpr (!kIsDirect<kType>) {
      result = WithElement(x.dtype, [&](auto element) {
        using T = decltype(element);
        return LaunchOverlapping(EmbedPackedKernel<kType, T>, grid, kThreads, stream, table, token_ids, static_cast<T*>(x.data),
                                 x.stride);
      });
    }
  });
  return result;
}

}  // namespace ferry::cuda
