// Products of any number of rows with the warpgroup instructions of capability 9.0a.
//
// Bound: the tensor cores' bf16 rate when tasks have about a hundred rows or more; below, the bytes of the tasks' matrices over
// the device memory rate. Weights are read once per 128 rows of a task, and decoded once per 128.
//
// A block computes tiles of up to 128 rows of a task by 256 rows of weights (128 of gate and 128 of up), one after another:
//   one warpgroup of producers: weights and rows, gathered by index, by cp.async;
//   two warpgroups of consumers: each owns 128 of the 256 weight rows as two m64 operands. A warp decodes the 16 rows of a
//     row tile into registers as operand A while the product of the block of columns before runs; rows are operand B.
// Stages of 64 columns lie in a ring in shared memory; a stage's full barrier counts the copies, its empty barrier the
// consumers' warps.

#include "kernels/cuda/product_device_code.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace ferry::cuda {
namespace {

constexpr int kConsumers = 2;              // warpgroups
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kPanelTiles = 8 * kConsumers;  // row tiles of weights that a block decodes
constexpr int kStageBlocks = 2;            // blocks of 32 columns
constexpr int kStageColumns = 32 * kStageBlocks;
constexpr int kRowBytes = 2 * kStageColumns;  // of one row of a stage: the width of the swizzle
constexpr int kSharedBytes = 227 * 1024;
constexpr int kOutPitch = 144;  // bytes from row to row of finished outputs, 128 and 16 that spread the banks
constexpr int kOutBytes = kTokenTile * kOutPitch;

// What lies where in shared memory.
template <DType kType>
struct Shared {
  static constexpr int kRows = kTokenTile * kRowBytes;
  static constexpr int kTileCodes = kStageBlocks * 16 * CodeBytes(kType);  // of one row tile in a stage
  static constexpr int kTileScales = kStageBlocks * 16 * ScaleBytes(kType);
  static constexpr int kCodes = kPanelTiles * kTileCodes, kScales = kPanelTiles * kTileScales;
  static constexpr int kBarriers = 256;
  static constexpr int kFit = (kSharedBytes - 1024 - kBarriers - kConsumers * kOutBytes) / (kRows + kCodes + kScales);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;

  static constexpr int kRowsAt = 0;
  static constexpr int kCodesAt = kRowsAt + kStages * kRows;
  static constexpr int kScalesAt = kCodesAt + kStages * kCodes;
  static constexpr int kOutAt = (kScalesAt + kStages * kScales + 127) / 128 * 128;
  static constexpr int kBarriersAt = kOutAt + kConsumers * kOutBytes;
  static constexpr int kBytes = kBarriersAt + kBarriers + 1024;  // and alignment of the start
};

#if FERRY_HAS_WGMMA

// A place in the ring of stages.
template <int kStages>
struct Place {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// The producers' part of one tile: every copy is a cp.async of 16 bytes, neighbours by neighbouring threads. (Bulk copies of
// the row tiles' straight lines, 512 and 32 bytes a stage, are limited by their number: about 90 cycles each.)
template <DType kType, bool kFused>
__device__ inline void Produce(const ProductParams& params, const ProductTask& task, const TaskRows& rows,
                               const ProductTile& tile, std::byte* shared, uint32_t full, uint32_t empty,
                               Place<Shared<kType>::kStages>* place) {
  using S = Shared<kType>;
  const int thread = threadIdx.x % 128, chunk = thread % 8;
  const int col_blocks = params.k / 32, stages = (col_blocks + kStageBlocks - 1) / kStageBlocks;
  // Rows thread / 8 + 16 i, 16 bytes of each in every stage: where they start, in units of 16 bytes.
  constexpr uint32_t kNoRow = 0xFFFFFFFF;
  uint32_t in[kTokenTile / 16];
  const int num_rows = (tile.count + 15) / 16;
#pragma unroll
  for (int i = 0; i < kTokenTile / 16; ++i) {
    const int token = thread / 8 + 16 * i;
    const int64_t row = token < tile.count ? InputRow(params, task, rows, tile.first + token) : -1;
    in[i] = row < 0 ? kNoRow : static_cast<uint32_t>(row * (params.in_stride / 8) + chunk);
  }
  const int row_offset = thread / 8 * kRowBytes + 16 * (chunk ^ (thread / 8 % 8));
  // Row tiles of the panel: slots 0-7 and 8-15 are two straight runs, of gate and up, or one after the other.
  const int row_tiles = (params.n + 15) / 16, first_tile = tile.panel * (kFused ? 8 : 16);
  const int64_t tile_codes = static_cast<int64_t>(col_blocks) * 16 * CodeBytes(kType);
  const int64_t tile_scales = static_cast<int64_t>(col_blocks) * 16 * ScaleBytes(kType);
  const ProductMatrix& second = kFused ? params.second : params.first;
  const std::byte* codes[2] = {task.weights + params.first.codes + first_tile * tile_codes,
                               task.weights + second.codes + (first_tile + (kFused ? 0 : 8)) * tile_codes};
  const int slots[2] = {min(8, row_tiles - first_tile), min(8, row_tiles - first_tile - (kFused ? 0 : 8))};  // that exist
  constexpr int kCodeChunks = S::kTileCodes / 16, kScaleChunks = S::kTileScales / 16;  // of a slot in a stage
  constexpr int kScaleSplit = kScaleChunks > 0 ? kScaleChunks : 1;
  const std::byte* scales = nullptr;  // of the chunk that this thread copies
  if (kScaleChunks > 0 && thread < kPanelTiles * kScaleChunks) {
    const int slot = thread / kScaleSplit, row_tile = first_tile + (kFused ? slot % 8 : slot);
    if (row_tile < row_tiles) {
      scales = task.weights + (slot < 8 ? params.first.scales : second.scales) + row_tile * tile_scales +
               thread % kScaleSplit * 16;
    }
  }
  for (int s = 0; s < stages; ++s) {
    BarrierWait(empty + 8 * place->stage, place->phase ^ 1);
    const int blocks = min(kStageBlocks, col_blocks - s * kStageBlocks);  // the rest of the last stage becomes zeros
    std::byte* stage_codes = shared + S::kCodesAt + place->stage * S::kCodes + thread * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 8 * kCodeChunks / 128; ++i) {
        const int slot = (thread + 128 * i) / kCodeChunks, at = (thread + 128 * i) % kCodeChunks * 16;
        CopyAsync16(stage_codes + half * 8 * S::kTileCodes + 128 * i * 16,
                    codes[half] + slot * tile_codes + s * S::kTileCodes + at,
                    slot < slots[half] && at < blocks * 16 * CodeBytes(kType));
      }
    }
    if (kScaleChunks > 0 && thread < kPanelTiles * kScaleChunks) {
      const bool valid = scales != nullptr && thread % kScaleSplit < blocks * ScaleBytes(kType);
      CopyAsync16(shared + S::kScalesAt + place->stage * S::kScales + thread * 16,
                  valid ? scales + s * S::kTileScales : task.weights, valid);
    }
    std::byte* target = shared + S::kRowsAt + place->stage * S::kRows + row_offset;
    const uint4* source = static_cast<const uint4*>(params.in) + s * (kRowBytes / 16);
    const bool in_range = s * kStageColumns + chunk * 8 < params.k;
#pragma unroll
    for (int i = 0; i < kTokenTile / 16; ++i) {
      if (i < num_rows) {
        const bool valid = in[i] != kNoRow && in_range;
        CopyAsync16(target + i * 16 * kRowBytes, valid ? source + in[i] : source, valid);
      }
    }
    BarrierArriveAfterCopies(full + 8 * place->stage);
    place->Next();
  }
}

// The consumers' part: sums of the tile's first kN rows by this warpgroup's two times 64 rows of weights.
template <DType kType, int kN>
__device__ inline void Multiply(int stages, const std::byte* shared, int first_slot, int second_slot, uint32_t full,
                                uint32_t empty, Place<Shared<kType>::kStages>* place, float (&sum)[2][kN / 2]) {
  using S = Shared<kType>;
  using Codes = Decoder<kType, __nv_bfloat16>;
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum[m][i] = 0;
  }
  uint32_t weights[kStageBlocks][2][8];  // of a block: two m64k16 operands for each of the two row tiles
  int last_stage = -1;
  for (int s = 0; s < stages; ++s) {
    BarrierWait(full + 8 * place->stage, place->phase);
    FenceForTensorCores();
    const std::byte* codes = shared + S::kCodesAt + place->stage * S::kCodes + g * CodeBytes(kType);
    const std::byte* scales = shared + S::kScalesAt + place->stage * S::kScales + g * ScaleBytes(kType);
    const uint64_t rows = RowsDescriptor(SharedAddress(shared + S::kRowsAt + place->stage * S::kRows));
#pragma unroll
    for (int block = 0; block < kStageBlocks; ++block) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int slot = m == 0 ? first_slot : second_slot;
        const std::byte* tile_codes = codes + slot * S::kTileCodes + block * 16 * CodeBytes(kType);
        const std::byte* tile_scales = scales + slot * S::kTileScales + block * 16 * ScaleBytes(kType);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t pairs[4];
          Codes::Fragment(tile_codes + 8 * half * CodeBytes(kType), g, q,
                          Codes::MakeScale(Codes::LoadScaleBits(tile_scales + 8 * half * ScaleBytes(kType))), pairs);
          weights[block][m][half] = pairs[0], weights[block][m][2 + half] = pairs[1];
          weights[block][m][4 + half] = pairs[2], weights[block][m][6 + half] = pairs[3];
        }
      }
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          Wgmma<kN>::Run(sum[m], &weights[block][m][4 * step], rows + (block * 2 + step) * 2);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();  // the products before these are done: their operands may be overwritten, their stage refilled
      if (block == 0 && last_stage >= 0 && lane == 0) BarrierArrive(empty + 8 * last_stage);
    }
    last_stage = place->stage;
    place->Next();
  }
  WgmmaWait<0>();
  if (lane == 0) BarrierArrive(empty + 8 * last_stage);
}

// A tile's outputs of 64 weight rows, [rows][64] in `staged`, to memory: 16 bytes a thread along a row.
template <typename T>
__device__ inline void StoreRows(const ProductParams& params, const ProductTask& task, const TaskRows& rows, int first,
                                 int count, int first_column, const std::byte* staged, int pitch) {
  constexpr int kPerChunk = 16 / sizeof(T), kChunks = 64 / kPerChunk;
  const bool aligned = reinterpret_cast<uintptr_t>(params.out) % 16 == 0 && params.out_stride % kPerChunk == 0;
  for (int i = threadIdx.x % 128; i < count * kChunks; i += 128) {
    const int token = i / kChunks, column = first_column + i % kChunks * kPerChunk;
    const int64_t row = OutputRow(params, task, rows, first + token);
    if (row < 0 || column >= params.n) continue;
    const T* source = reinterpret_cast<const T*>(staged + token * pitch + i % kChunks * 16);
    T* target = static_cast<T*>(params.out) + row * params.out_stride + column;
    if (aligned && column + kPerChunk <= params.n) {
      uint4 value = *reinterpret_cast<const uint4*>(source);
      if constexpr (sizeof(T) == 4) {
        if (params.accumulate) {
          const float4 old = *reinterpret_cast<const float4*>(target);
          value.x = __float_as_uint(old.x + __uint_as_float(value.x));
          value.y = __float_as_uint(old.y + __uint_as_float(value.y));
          value.z = __float_as_uint(old.z + __uint_as_float(value.z));
          value.w = __float_as_uint(old.w + __uint_as_float(value.w));
        }
      }
      *reinterpret_cast<uint4*>(target) = value;
    } else {
      for (int e = 0; e < kPerChunk && column + e < params.n; ++e) {
        if constexpr (sizeof(T) == 4) target[e] = params.accumulate ? target[e] + source[e] : source[e];
        else target[e] = source[e];
      }
    }
  }
}

// Outputs [kN rows][64 weight rows from first_column] of one m64 operand's sums, through `staged` (kOutBytes).
template <int kN>
__device__ inline void Store(const ProductParams& params, const ProductTask& task, const TaskRows& rows,
                             const ProductTile& tile, int first_column, float (&sum)[kN / 2], std::byte* staged) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / kWarpSize % 4, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, q = lane % 4;
  const int barrier = 1 + warpgroup;
  if (params.out_type == DType::kF32) {
    constexpr int kPitch = 68 * 4, kSlice = 64;  // 64 rows at a time; 68 floats: the 32 lanes of a store hit 32 banks
    static_assert(kSlice * kPitch <= kOutBytes);
#pragma unroll
    for (int slice = 0; slice < (kN + kSlice - 1) / kSlice; ++slice) {
      NamedBarrier<128>(barrier);
#pragma unroll
      for (int j = slice * kSlice / 8; j < kN / 8 && j < (slice + 1) * kSlice / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = 8 * j + 2 * q + (i & 1) - slice * kSlice;
          *reinterpret_cast<float*>(staged + token * kPitch + 4 * (16 * warp + g + 8 * (i >> 1))) = sum[4 * j + i];
        }
      }
      NamedBarrier<128>(barrier);
      StoreRows<float>(params, task, rows, tile.first + slice * kSlice, min(kSlice, tile.count - slice * kSlice),
                       first_column, staged, kPitch);
    }
  } else {
    NamedBarrier<128>(barrier);
    // Matrices of a store: weight rows 0-7 and 8-15 of this warp's 16, for eight rows and the next eight.
    const uint32_t address = SharedAddress(staged) + (lane % 8 + lane / 16 * 8) * kOutPitch + warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 2) {
      const float(&s)[kN / 2] = sum;
      StoreMatrix4Transposed(address + j * 8 * kOutPitch, PackPair<__nv_bfloat16>(s[4 * j], s[4 * j + 1]),
                             PackPair<__nv_bfloat16>(s[4 * j + 2], s[4 * j + 3]),
                             PackPair<__nv_bfloat16>(s[4 * j + 4], s[4 * j + 5]),
                             PackPair<__nv_bfloat16>(s[4 * j + 6], s[4 * j + 7]));
    }
    NamedBarrier<128>(barrier);
    StoreRows<__nv_bfloat16>(params, task, rows, tile.first, tile.count, first_column, staged, kOutPitch);
  }
}

// One tile of the consumers: products, biases, SwiGLU, stores.
template <DType kType, bool kFused, int kN>
__device__ inline void Consume(const ProductParams& params, const ProductTask& task, const TaskRows& rows,
                               const ProductTile& tile, std::byte* shared, uint32_t full, uint32_t empty,
                               Place<Shared<kType>::kStages>* place) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / kWarpSize % 4, lane = threadIdx.x % kWarpSize;
  const int stages = (params.k / 32 + kStageBlocks - 1) / kStageBlocks;
  const int first_slot = kFused ? 4 * warpgroup + warp : 8 * warpgroup + warp;
  const int second_slot = first_slot + (kFused ? 8 : 4);
  float sum[2][kN / 2];
  Multiply<kType, kN>(stages, shared, first_slot, second_slot, full, empty, place, sum);

  constexpr float kScale = kSumScale<kType, __nv_bfloat16>;
  std::byte* staged = shared + Shared<kType>::kOutAt + warpgroup * kOutBytes;
  const int first_column = kFused ? tile.panel * 128 + 64 * warpgroup : tile.panel * 256 + 128 * warpgroup;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const float* bias = BiasOf(params, task, kFused && m == 1 ? params.second : params.first);
    const int column = first_column + (kFused ? 0 : 64 * m) + 16 * warp + lane / 4;
    const float low = bias != nullptr && column < params.n ? bias[column] : 0.0f;
    const float high = bias != nullptr && column + 8 < params.n ? bias[column + 8] : 0.0f;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum[m][i] = sum[m][i] * kScale + ((i & 2) ? high : low);
  }
  if constexpr (kFused) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum[0][i] = Swiglu(sum[0][i], sum[1][i], params.alpha, params.limit);
    if (first_column < params.n) Store<kN>(params, task, rows, tile, first_column, sum[0], staged);
  } else {
    if (first_column < params.n) Store<kN>(params, task, rows, tile, first_column, sum[0], staged);
    if (first_column + 64 < params.n) Store<kN>(params, task, rows, tile, first_column + 64, sum[1], staged);
  }
}

#endif  // FERRY_HAS_WGMMA

// Grid: at most the number of multiprocessors; block b computes tiles b, b + grid, ... Block: kThreads.
// Dynamic shared memory: Shared<kType>::kBytes.
template <DType kType, bool kFused>
__global__ void __launch_bounds__(kThreads, 1) ProductsWgmmaKernel(const __grid_constant__ ProductParams params) {
#if FERRY_HAS_WGMMA
  using S = Shared<kType>;
  extern __shared__ std::byte dynamic[];
  std::byte* shared = dynamic + (1024 - SharedAddress(dynamic) % 1024) % 1024;
  const uint32_t full = SharedAddress(shared + S::kBarriersAt), empty = full + 8 * S::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      BarrierInit(full + 8 * s, 128);
      BarrierInit(empty + 8 * s, 4 * kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int panel_rows = kFused ? 128 : 256, panels = (params.n + panel_rows - 1) / panel_rows;
  Place<S::kStages> place;
  if (threadIdx.x / 128 == kConsumers) {
    LowerRegisters<56>();
    for (int t = blockIdx.x; t < params.num_tiles; t += gridDim.x) {
      const ProductTile tile = TileOf(params, t, kTokenTile, panels);
      const ProductTask& task = params.tasks[tile.task];
      const TaskRows rows = RowsOf(params, task);
      if (rows.count <= tile.first) continue;
      Produce<kType, kFused>(params, task, rows, tile, shared, full, empty, &place);
    }
  } else {
    RaiseRegisters<224>();
    for (int t = blockIdx.x; t < params.num_tiles; t += gridDim.x) {
      const ProductTile tile = TileOf(params, t, kTokenTile, panels);
      const ProductTask& task = params.tasks[tile.task];
      const TaskRows rows = RowsOf(params, task);
      if (rows.count <= tile.first) continue;
      // Three widths; with a fourth, ptxas finds too few registers and runs the products one by one (C7512).
      if (tile.count <= 64) {
        Consume<kType, kFused, 64>(params, task, rows, tile, shared, full, empty, &place);
      } else if (tile.count <= 96) {
        Consume<kType, kFused, 96>(params, task, rows, tile, shared, full, empty, &place);
      } else {
        Consume<kType, kFused, 128>(params, task, rows, tile, shared, full, empty, &place);
      }
    }
  }
#endif
}

template <DType kType, bool kFused>
cudaError_t Launch(const ProductDevice& device, ProductParams& params, cudaStream_t stream) {
  AssignTiles(&params, kTokenTile, kFused ? 128 : 256);
  if (params.num_tiles == 0) return cudaSuccess;
  const int blocks = params.num_tiles < device.num_sms ? params.num_tiles : device.num_sms;
  ProductsWgmmaKernel<kType, kFused><<<blocks, kThreads, Shared<kType>::kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <DType kType, bool kFused>
cudaError_t Prepare() {
  return cudaFuncSetAttribute(ProductsWgmmaKernel<kType, kFused>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Shared<kType>::kBytes);
}

}  // namespace

cudaError_t PrepareProductsWgmma(bool* usable) {
  // A build for plain sm_90 leaves the kernels empty.
  cudaFuncAttributes attributes;
  FERRY_CUDA_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, ProductsWgmmaKernel<DType::kMXFP4, true>));
  *usable = attributes.binaryVersion == 90 && attributes.numRegs > 100;
  if (!*usable) return cudaSuccess;
  for (const DType type : {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kBF16, DType::kF16, DType::kF32}) {
    FERRY_CUDA_RETURN_IF_ERROR(WithWeightType(type, [&]<DType kType>() -> cudaError_t {
      const cudaError_t error = Prepare<kType, false>();
      return error != cudaSuccess ? error : Prepare<kType, true>();
    }));
  }
  return cudaSuccess;
}

cudaError_t LaunchProductsWgmma(const ProductDevice& device, ProductParams params, bool fused, cudaStream_t stream) {
  if (params.act_type != DType::kBF16) return cudaErrorInvalidValue;
  return WithWeightType(params.weight_type, [&]<DType kType>() {
    return fused ? Launch<kType, true>(device, params, stream) : Launch<kType, false>(device, params, stream);
  });
}

}  // namespace ferry::cuda
