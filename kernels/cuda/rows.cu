#include <algorithm>

#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/weight_types.h"

namespace ferry::cuda {
namespace {

constexpr int kTileRows = 16, kTileCols = 32;  // common/model/tiled_layout.h
constexpr int kThreads = 256;

// Magnitudes of the eight E2M1 codes, twice: 0 1 2 3 4 6 8 12, one in each four bits.
constexpr uint32_t kTwiceE2M1 = 0xC8643210u;

__device__ inline float MxFp4(uint32_t code, uint32_t scale) {
  if (scale == 255) return NAN;
  const float magnitude = static_cast<float>((kTwiceE2M1 >> (4 * (code & 7))) & 15u);
  const float value = ldexpf(magnitude, static_cast<int>(scale) - 128);  // 2^(scale - 127), halved
  return code & 8 ? -value : value;
}

template <typename T>
__device__ inline T ReadAs(const std::byte* source) {
  return *reinterpret_cast<const T*>(source);
}

// One element of a tiled matrix of a direct type (weight_types.h).
__device__ inline float TileValue(const DeviceTiles& table, int64_t row, int64_t col) {
  const int64_t tile = (row / kTileRows) * (table.cols / kTileCols) + col / kTileCols;
  const int in_row = static_cast<int>(row % kTileRows), i = static_cast<int>(col % kTileCols);
  const std::byte* codes = table.data + (tile * kTileRows + in_row) * table.code_bytes;
  const std::byte* scale = table.data + table.scales_offset + (tile * kTileRows + in_row) * table.scale_bytes;
  switch (table.dtype) {
    case DType::kMXFP4: {
      const uint32_t pair = ReadAs<uint8_t>(codes + i % 16);
      return MxFp4(i < 16 ? pair & 15u : pair >> 4, ReadAs<uint8_t>(scale));
    }
    case DType::kQ4_0: {
      const uint32_t pair = ReadAs<uint8_t>(codes + i % 16);
      return static_cast<float>(static_cast<int>(i < 16 ? pair & 15u : pair >> 4) - 8) * __half2float(ReadAs<__half>(scale));
    }
    case DType::kQ8_0:
      return static_cast<float>(ReadAs<int8_t>(codes + i)) * __half2float(ReadAs<__half>(scale));
    case DType::kF16:
      return __half2float(ReadAs<__half>(codes + 2 * i));
    case DType::kBF16:
      return __bfloat162float(ReadAs<__nv_bfloat16>(codes + 2 * i));
    default:
      return ReadAs<float>(codes + 4 * i);
  }
}

// Grid: [rows]. Block: kThreads, one element each in turn: a warp reads one block of one row, 34 bytes for Q8_0.
// Bound: rows * cols * (code bytes + sizeof(T)) through device memory.
template <typename T>
__global__ void EmbedKernel(DeviceTiles table, const int32_t* token_ids, T* x, int64_t stride) {
  AwaitLaunchesBefore();
  const int64_t token = token_ids[blockIdx.x];
  if (token < 0 || token >= table.rows) return;
  T* const out = x + blockIdx.x * stride;
  for (int64_t col = threadIdx.x; col < table.cols; col += kThreads) out[col] = FromFloat<T>(TileValue(table, token, col));
}

// Grid: [rows]. Block: kThreads. Thread t takes columns [4t, 4t + 4) of each 4 * kThreads, so the order of the sum
// follows from cols alone. The second reading of x hits L1.
// Bound: rows * cols * (sizeof(In) + sizeof(Out)) through device memory.
template <typename In, typename Out>
__global__ void RmsNormKernel(const In* x, int64_t x_stride, bool x_aligned, const float* weight, bool weight_aligned,
                              float epsilon, Out* out, int64_t out_stride, bool out_aligned, int cols) {
  __shared__ float scratch[kWarpSize];
  AwaitLaunchesBefore();
  const In* const row = x + blockIdx.x * x_stride;
  Out* const out_row = out + blockIdx.x * out_stride;
  float sum = 0.0f;
  for (int col = 4 * threadIdx.x; col < cols; col += 4 * kThreads) {
    float v[4];
    Load4(row + col, cols - col, x_aligned, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fmaf(v[i], v[i], sum);
  }
  const float mean = BlockSum(sum, scratch) / static_cast<float>(cols);
  const float scale = 1.0f / sqrtf(mean + epsilon);
  for (int col = 4 * threadIdx.x; col < cols; col += 4 * kThreads) {
    float v[4], w[4];
    Load4(row + col, cols - col, x_aligned, v);
    Load4(weight + col, cols - col, weight_aligned, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = v[i] * scale * w[i];
    Store4(out_row + col, cols - col, out_aligned, v);
  }
}

// Grid: [rows * parts], parts = ceil(cols / (4 * kCombineThreads)). Block: kCombineThreads, four columns each.
// Bound: rows * cols * (top_k * sizeof(T) + 8) through device memory.
constexpr int kCombineThreads = 128;
template <typename T>
__global__ void CombineKernel(const T* contributions, int64_t stride, bool aligned, const float* weights, int top_k, float* x,
                              int64_t x_stride, bool x_aligned, int cols, int parts) {
  AwaitLaunchesBefore();
  const int64_t token = blockIdx.x / parts;
  const int col = 4 * (static_cast<int>(blockIdx.x % parts) * kCombineThreads + static_cast<int>(threadIdx.x));
  if (col >= cols) return;
  const T* source = contributions + token * top_k * stride + col;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
  for (int rank = 0; rank < top_k; ++rank) {
    const float weight = weights[token * top_k + rank];
    float v[4];
    Load4(source + rank * stride, cols - col, aligned, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = fmaf(weight, v[i], sum[i]);
  }
  float* const target = x + token * x_stride + col;
  float v[4];
  Load4(target, cols - col, x_aligned, v);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] += sum[i];
  Store4(target, cols - col, x_aligned, v);
}

// Grid: [rows]. Block: kThreads. Word: what both tensors' rows are aligned to.
// Bound: twice the rows' bytes.
template <typename Word>
__global__ void GatherKernel(const Word* in, int64_t in_stride, int64_t in_rows, const int32_t* rows, Word* out,
                             int64_t out_stride, int64_t words) {
  AwaitLaunchesBefore();
  const int64_t source = rows[blockIdx.x];
  if (source < 0 || source >= in_rows) return;
  for (int64_t i = threadIdx.x; i < words; i += kThreads) out[blockIdx.x * out_stride + i] = in[source * in_stride + i];
}

// Grid: [num_rows, pieces of 4 * kThreads columns]. Block: kThreads, four columns each: 16-byte reads, all in flight, since
// `rows` may lie across the link. Bound: num_rows * cols * 4 bytes over the link.
template <typename T>
__global__ void ScatterKernel(const float* rows, bool aligned, const int32_t* outs, T* out, int64_t out_stride, bool out_aligned,
                              int64_t out_rows, int cols) {
  AwaitLaunchesBefore();
  const int col = 4 * (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x));
  if (col >= cols) return;
  // Both reads at once: one way across the link and back, 1.2 us, is most of what a step of one row takes.
  float v[4];
  Load4(rows + static_cast<int64_t>(blockIdx.x) * cols + col, cols - col, aligned, v);
  const int64_t target = outs[blockIdx.x];
  if (target < 0 || target >= out_rows) return;
  Store4(out + target * out_stride + col, cols - col, out_aligned, v);
}

// Grid: [num_rows, pieces of 4 * kThreads columns]. Block: kThreads, four columns each: a warp's 512 bytes cross the link
// together. Bound: num_rows * cols * 4 bytes over the link.
template <typename T>
__global__ void GatherFloatsKernel(const T* in, int64_t in_stride, bool in_aligned, int64_t in_rows, const int32_t* rows,
                                   float* out, bool aligned, int cols) {
  AwaitLaunchesBefore();
  const int col = 4 * (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x));
  const int64_t source = rows[blockIdx.x];
  if (col >= cols || source < 0 || source >= in_rows) return;
  float v[4];
  Load4(in + source * in_stride + col, cols - col, in_aligned, v);
  Store4(out + static_cast<int64_t>(blockIdx.x) * cols + col, cols - col, aligned, v);
}

// This thread's words of a copy: those from `first` on in steps of `step`, then such bytes of the rest.
template <typename Word>
__device__ void CopyWords(std::byte* dst, const std::byte* src, int64_t bytes, int64_t first, int64_t step) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = first; i < words; i += step) reinterpret_cast<Word*>(dst)[i] = reinterpret_cast<const Word*>(src)[i];
  for (int64_t i = words * static_cast<int64_t>(sizeof(Word)) + first; i < bytes; i += step) dst[i] = src[i];
}

// Grid: as many as keep the link busy. Block: kThreads, a Word each in turn; the last bytes by the first threads.
// Bound: bytes over the link, 54 GB/s: 64 KB in flight at 1.2 us a read.
template <typename Word>
__global__ void CopyKernel(std::byte* dst, const std::byte* src, int64_t bytes) {
  AwaitLaunchesBefore();
  CopyWords<Word>(dst, src, bytes, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads);
}

// Grid: blocks that take a copy in turn. Block: kThreads. Bound: as above.
__global__ void CopiesKernel(const DeviceCopy* copies, int64_t count) {
  AwaitLaunchesBefore();
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const DeviceCopy copy = copies[i];
    CopyWords<uint4>(copy.to, copy.from, copy.bytes, threadIdx.x, kThreads);
  }
}

constexpr int kSignalThreads = 1024;

// A copy to the host, then a signal that it has arrived. Grid: one block, since the signal comes after all of the copy.
// Bound: one transfer across the link.
template <typename Word>
__global__ void CopyAndSignalKernel(std::byte* dst, const std::byte* src, int64_t bytes, uint32_t* signal, uint32_t value) {
  AwaitLaunchesBefore();
  CopyWords<Word>(dst, src, bytes, threadIdx.x, kSignalThreads);
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(signal) = value;
}

// Calls f with the widest word that both addresses are aligned to.
template <typename F>
cudaError_t WithWord(const void* a, const void* b, const F& f) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
  if (address % 16 == 0) return f(uint4{});
  if (address % 4 == 0) return f(uint32_t{});
  return f(uint8_t{});
}

template <typename T>
bool Aligned4(const DeviceRows& rows) {
  return RowsAligned4<T>(rows.data, rows.stride);
}

template <typename Word>
cudaError_t Gather(const DeviceRows& in, const int32_t* rows, const DeviceRows& out, int64_t element_bytes, dim3 grid,
                   cudaStream_t stream) {
  const int64_t per_word = sizeof(Word) / element_bytes;
  return LaunchOverlapping(GatherKernel<Word>, grid, kThreads, stream, static_cast<const Word*>(in.data), in.stride / per_word,
                           in.rows, rows, static_cast<Word*>(out.data), out.stride / per_word, in.cols / per_word);
}

// Grid: [rows * ceil(cols / kThreads)]. Block: kThreads, one element each.
// Bound: the rows' bytes, 8 read and 2 written an element.
template <typename Act>
__global__ void GluKernel(GluArgs args) {
  const int64_t parts = (args.out.cols + kThreads - 1) / kThreads, row = blockIdx.x / parts;
  const int64_t col = blockIdx.x % parts * kThreads + threadIdx.x;
  if (col >= args.out.cols) return;
  const float gate = static_cast<const float*>(args.gate.data)[row * args.gate.stride + col];
  const float up = static_cast<const float*>(args.up.data)[row * args.up.stride + col];
  const float g = gate > args.limit ? args.limit : gate;
  const float u = up > args.limit ? args.limit : up < -args.limit ? -args.limit : up;
  static_cast<Act*>(args.out.data)[row * args.out.stride + col] =
      FromFloat<Act>(__fdividef((u + args.up_offset) * g, 1.0f + __expf(-args.alpha * g)));
}

// Grid: [rows * ceil(cols / kThreads)]. Block: kThreads, one element each.
// Bound: the rows' bytes, 4 (or none, with one gate a row) and 2 read and 2 written an element.
template <typename Act>
__global__ void SigmoidKernel(DeviceRows gate, DeviceRows x) {
  const int64_t parts = (x.cols + kThreads - 1) / kThreads, row = blockIdx.x / parts;
  const int64_t col = blockIdx.x % parts * kThreads + threadIdx.x;
  if (col >= x.cols) return;
  const float of = static_cast<const float*>(gate.data)[row * gate.stride + (gate.cols == 1 ? 0 : col)];
  Act* const element = static_cast<Act*>(x.data) + row * x.stride + col;
  *element = FromFloat<Act>(ToFloat(*element) / (1.0f + expf(-of)));
}

// Grid: [rows * ceil(out cols / kThreads)]. Block: kThreads, one element each. Bound: 4 bytes an element.
__global__ void PadKernel(DeviceRows in, DeviceRows out) {
  const int64_t parts = (out.cols + kThreads - 1) / kThreads, row = blockIdx.x / parts;
  const int64_t col = blockIdx.x % parts * kThreads + threadIdx.x;
  if (col >= out.cols) return;
  static_cast<uint16_t*>(out.data)[row * out.stride + col] =
      col < in.cols ? static_cast<const uint16_t*>(in.data)[row * in.stride + col] : uint16_t{0};
}

}  // namespace

cudaError_t LaunchEmbed(const DeviceTiles& table, const int32_t* token_ids, const DeviceRows& x, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  if (!IsAmong(DirectTypes{}, table.dtype)) return LaunchEmbedPacked(table, token_ids, x, stream);
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(x.rows, 1, 1, &grid));
  return WithElement(x.dtype, [&](auto type) {
    using T = decltype(type);
    return LaunchOverlapping(EmbedKernel<T>, grid, kThreads, stream, table, token_ids, static_cast<T*>(x.data), x.stride);
  });
}

cudaError_t LaunchRmsNorm(const DeviceRows& x, const float* weight, float epsilon, const DeviceRows& out, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  if (x.cols < 1 || x.cols > 1 << 24) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(x.rows, 1, 1, &grid));
  const bool weight_aligned = RowsAligned4<float>(weight, 0);
  return WithElement(x.dtype, [&](auto in_type) {
    return WithElement(out.dtype, [&](auto out_type) {
      using In = decltype(in_type);
      using Out = decltype(out_type);
      return LaunchOverlapping(RmsNormKernel<In, Out>, grid, kThreads, stream, static_cast<const In*>(x.data), x.stride,
                               Aligned4<In>(x), weight, weight_aligned, epsilon, static_cast<Out*>(out.data), out.stride,
                               Aligned4<Out>(out), static_cast<int>(x.cols));
    });
  });
}

cudaError_t LaunchGlu(const GluArgs& args, cudaStream_t stream) {
  if (args.out.rows == 0 || args.out.cols == 0) return cudaSuccess;
  if (args.out.cols > 1 << 24) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.out.rows * CeilDiv(args.out.cols, kThreads), 1, 1, &grid));
  return WithActivation(args.out.dtype, [&](auto type) {
    using Act = decltype(type);
    GluKernel<Act><<<grid, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t LaunchMultiplyBySigmoid(const DeviceRows& gate, const DeviceRows& x, cudaStream_t stream) {
  if (x.rows == 0 || x.cols == 0) return cudaSuccess;
  if (x.cols > 1 << 24) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(x.rows * CeilDiv(x.cols, kThreads), 1, 1, &grid));
  return WithActivation(x.dtype, [&](auto type) {
    SigmoidKernel<decltype(type)><<<grid, kThreads, 0, stream>>>(gate, x);
    return cudaGetLastError();
  });
}

cudaError_t LaunchPadRows(const DeviceRows& in, const DeviceRows& out, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  if (out.cols > 1 << 24 || in.cols > out.cols || in.dtype == DType::kF32 || out.dtype != in.dtype) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(out.rows * CeilDiv(out.cols, kThreads), 1, 1, &grid));
  PadKernel<<<grid, kThreads, 0, stream>>>(in, out);
  return cudaGetLastError();
}

cudaError_t LaunchCombine(const DeviceRows& contributions, const float* weights, int64_t top_k, const DeviceRows& x,
                          cudaStream_t stream) {
  if (x.rows == 0 || x.cols == 0 || top_k == 0) return cudaSuccess;
  if (x.cols > 1 << 24 || top_k > 1 << 16) return cudaErrorInvalidValue;
  const int64_t parts = CeilDiv(x.cols, 4 * kCombineThreads);
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(x.rows * parts, 1, 1, &grid));
  return WithElement(contributions.dtype, [&](auto type) {
    using T = decltype(type);
    return LaunchOverlapping(CombineKernel<T>, grid, kCombineThreads, stream, static_cast<const T*>(contributions.data),
                             contributions.stride, Aligned4<T>(contributions), weights, static_cast<int>(top_k),
                             static_cast<float*>(x.data), x.stride, Aligned4<float>(x), static_cast<int>(x.cols),
                             static_cast<int>(parts));
  });
}

cudaError_t LaunchGatherRows(const DeviceRows& in, const int32_t* rows, const DeviceRows& out, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(out.rows, 1, 1, &grid));
  const int64_t element_bytes = in.dtype == DType::kF32 ? 4 : 2;
  const uint64_t offsets = reinterpret_cast<uintptr_t>(in.data) | reinterpret_cast<uintptr_t>(out.data) |
                           static_cast<uint64_t>((in.stride | out.stride | in.cols) * element_bytes);
  if (offsets % 16 == 0) return Gather<uint4>(in, rows, out, element_bytes, grid, stream);
  if (element_bytes == 4) return Gather<uint32_t>(in, rows, out, element_bytes, grid, stream);
  return Gather<uint16_t>(in, rows, out, element_bytes, grid, stream);
}

cudaError_t LaunchGatherFloats(const DeviceRows& in, const int32_t* rows, int64_t num_rows, float* out, cudaStream_t stream) {
  if (num_rows == 0 || in.cols == 0) return cudaSuccess;
  if (in.cols > 1 << 24) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(num_rows, (in.cols + 4 * kThreads - 1) / (4 * kThreads), 1, &grid));
  const bool aligned = RowsAligned4<float>(out, in.cols);
  return WithElement(in.dtype, [&](auto type) {
    using T = decltype(type);
    return LaunchOverlapping(GatherFloatsKernel<T>, grid, kThreads, stream, static_cast<const T*>(in.data), in.stride,
                             Aligned4<T>(in), in.rows, rows, out, aligned, static_cast<int>(in.cols));
  });
}

cudaError_t LaunchScatterRows(const float* rows, const int32_t* outs, int64_t num_rows, const DeviceRows& out,
                              cudaStream_t stream) {
  if (num_rows == 0 || out.cols == 0) return cudaSuccess;
  if (out.cols > 1 << 24) return cudaErrorInvalidValue;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(num_rows, (out.cols + 4 * kThreads - 1) / (4 * kThreads), 1, &grid));
  const bool aligned = RowsAligned4<float>(rows, out.cols);
  return WithElement(out.dtype, [&](auto type) {
    using T = decltype(type);
    return LaunchOverlapping(ScatterKernel<T>, grid, kThreads, stream, rows, aligned, outs, static_cast<T*>(out.data), out.stride,
                             Aligned4<T>(out), out.rows, static_cast<int>(out.cols));
  });
}

cudaError_t LaunchCopy(void* dst, const void* src, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 64;
  return WithWord(dst, src, [&](auto word) {
    using Word = decltype(word);
    const int64_t words = bytes / static_cast<int64_t>(sizeof(Word)) + 1;
    const int64_t blocks = words < kMaxBlocks * kThreads ? (words + kThreads - 1) / kThreads : kMaxBlocks;
    return LaunchOverlapping(CopyKernel<Word>, dim3(static_cast<unsigned>(blocks)), kThreads, stream,
                             static_cast<std::byte*>(dst), static_cast<const std::byte*>(src), bytes);
  });
}

cudaError_t LaunchCopies(const DeviceCopy* copies, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 1024;  // enough of them are under way that the link never waits for one
  const auto blocks = static_cast<unsigned>(std::min(count, kMaxBlocks));
  return LaunchOverlapping(CopiesKernel, dim3(blocks), kThreads, stream, copies, count);
}

cudaError_t LaunchCopyAndSignal(void* dst, const void* src, int64_t bytes, uint32_t* signal, uint32_t value,
                                cudaStream_t stream) {
  return WithWord(dst, src, [&](auto word) {
    return LaunchOverlapping(CopyAndSignalKernel<decltype(word)>, dim3(1), kSignalThreads, stream, static_cast<std::byte*>(dst),
                             static_cast<const std::byte*>(src), bytes, signal, value);
  });
}

}  // namespace ferry::cuda
