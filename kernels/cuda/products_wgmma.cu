// Products of any number of rows with the warpgroup instructions of capability 9.0a.
//
// Bound: the tensor cores' bf16 rate when tasks have about a hundred rows or more; below, the bytes of the tasks'
// matrices over the device memory rate. Decoding the weights limits the rate reached, since it shares the issue slots
// with everything else: a weight is decoded once for all rows of a tile.
//
// A block computes tiles of some rows of a task by some rows of weights, one after another:
//   one warpgroup of producers copies weights and rows, gathered by index, into a ring of stages of 64 columns;
//   three or four warpgroups of consumers own 64 weight rows each. A warp decodes its 16 rows of weights into registers,
//     operand A, while the product of the block of columns before runs; the rows of the task are operand B.
// A stage's full barrier is passed when the producers have seen their copies arrive, its empty barrier when the
// consumers' warps have used it.

#include <algorithm>

#include "kernels/cuda/product_device_code.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace ferry::cuda {
namespace {

constexpr int kStageBlocks = 2;  // blocks of 32 columns
constexpr int kStageColumns = 32 * kStageBlocks;
constexpr int kRowBytes = 2 * kStageColumns;  // of one row of a stage: the width of the swizzle
constexpr int kSharedBytes = 227 * 1024;
[[maybe_unused]] constexpr int kProducerRegisters = 56;

// Three warpgroups of consumers have registers for the sums of 128 rows, four for 64. More warpgroups hide more of the
// decoding's latency; more rows share it.
template <DType kType, bool kFused, int kConsumers>
struct Config {
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kTokens = kConsumers == 3 ? 128 : 64;  // rows of a tile
  [[maybe_unused]] static constexpr int kConsumerRegisters = kConsumers == 3 ? 152 : 104;
  static constexpr int kSlots = 4 * kConsumers;  // row tiles of weights; fused: half gate, half up
  static constexpr int kPanelRows = kFused ? 32 * kConsumers : 64 * kConsumers;
  static constexpr int kOutColumns = kFused ? 32 : 64;  // of a warpgroup

  // What lies where in shared memory.
  static constexpr int kRows = kTokens * kRowBytes;
  static constexpr int kSlotCodes = kStageBlocks * 16 * Format<kType>::kCodeBytes;
  static constexpr int kSlotScales = kStageBlocks * 16 * Format<kType>::kScaleBytes;
  static constexpr int kCodes = kSlots * kSlotCodes, kScales = kSlots * kSlotScales;
  // Finished outputs [row][column] of a warpgroup: 16 bytes more a row than it has spread the banks.
  static constexpr int kOutPitch = 2 * kOutColumns + 16, kOutPitchF32 = 4 * kOutColumns + 16;
  static constexpr int kOutBytes = (kTokens * kOutPitch + 127) / 128 * 128;
  static constexpr int kBarriers = 256;
  static constexpr int kFit = (kSharedBytes - 1024 - 128 - kBarriers - kConsumers * kOutBytes) / (kRows + kCodes + kScales);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;
  static_assert(kStages >= 2);
  static constexpr int kRowsAt = 0;
  static constexpr int kCodesAt = kRowsAt + kStages * kRows;
  static constexpr int kScalesAt = kCodesAt + kStages * kCodes;
  static constexpr int kOutAt = (kScalesAt + kStages * kScales + 127) / 128 * 128;
  static constexpr int kBarriersAt = kOutAt + kConsumers * kOutBytes;
  static constexpr int kBytes = kBarriersAt + kBarriers + 1024;  // and alignment of the start

  // Stages whose copies a producer does not wait for.
  static constexpr int kInFlight = kStages - 2 < 3 ? kStages - 2 : 3;
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

// Calls f.operator()<kN>() with the width of the products for `count` rows: the smallest that holds them.
template <int kConsumers, typename F>
__device__ __forceinline__ void WithWidth(int count, F&& f) {
  if constexpr (kConsumers == 4) {
    if (count <= 16)
      f.template operator()<16>();
    else if (count <= 32)
      f.template operator()<32>();
    else if (count <= 48)
      f.template operator()<48>();
    else
      f.template operator()<64>();
  } else {
    if (count <= 80)
      f.template operator()<80>();
    else if (count <= 96)
      f.template operator()<96>();
    else if (count <= 112)
      f.template operator()<112>();
    else
      f.template operator()<128>();
  }
}

// The producers: every copy is a cp.async of 16 bytes, neighbours by neighbouring threads. (Bulk copies of the row
// tiles' straight lines, 512 and 32 bytes a stage, were limited by their number: about 90 cycles each.) A thread copies
// the same places of every stage, so it keeps a pointer for each and little else is left to do: producers share the
// issue slots with the decoding.
template <class C, DType kType, bool kFused>
class Producer {
 public:
  __device__ Producer(const ProductParams& params, std::byte* shared, uint32_t full, uint32_t empty)
      : params_(params), shared_(SharedAddress(shared)), full_(full), empty_(empty) {}

  // Copies for the consumers' width of 16 * kRowCopies rows. Rows and weights that do not exist are copied from ones
  // that do: what becomes of them is not stored.
  template <int kRowCopies>
  __device__ void Tile(const ProductTask& task, const TaskRows& rows, const ProductTile& tile) {
    const int thread = threadIdx.x % 128, chunk = thread % 8;
    const int col_blocks = params_.k / 32, row_tiles = (params_.n + 15) / 16;
    // Rows thread / 8 + 16 i, 16 bytes of each in every stage.
    const std::byte* in[kRowCopies];
#pragma unroll
    for (int i = 0; i < kRowCopies; ++i) {
      const int64_t row = InputRow(params_, task, rows, tile.first + min(thread / 8 + 16 * i, tile.count - 1));
      in[i] = static_cast<const std::byte*>(params_.in) + (max(row, int64_t{0}) * params_.in_stride + chunk * 8) * 2;
    }
    // Slots are row tiles of weights: the panel's of the first matrix, then of the second. A thread's copies of codes
    // go through the slots in steps.
    const int first_tile = tile.panel * (kFused ? C::kSlots / 2 : C::kSlots);
    const int64_t tile_codes = static_cast<int64_t>(col_blocks) * 16 * Format<kType>::kCodeBytes;
    const int64_t tile_scales = static_cast<int64_t>(col_blocks) * 16 * Format<kType>::kScaleBytes;
    const auto slot_tile = [&](int slot) { return min(first_tile + (kFused ? slot % (C::kSlots / 2) : slot), row_tiles - 1); };
    const std::byte* base = task.weights + params_.first.codes + slot_tile(0) * tile_codes;
    const std::byte* pointers[kOffsets ? 1 : kCodePointers] = {};
    uint32_t offsets[kOffsets ? kCodePointers : 1] = {};
#pragma unroll
    for (int i = 0; i < kCodePointers; ++i) {
      const int at = thread + 128 * kCopiesEach * i, slot = at / kCodeChunks;
      const ProductMatrix& matrix = kFused && slot >= C::kSlots / 2 ? params_.second : params_.first;
      const std::byte* codes = task.weights + matrix.codes + slot_tile(slot) * tile_codes + at % kCodeChunks * 16;
      if constexpr (kOffsets)
        offsets[i] = static_cast<uint32_t>(codes - base);
      else
        pointers[i] = codes;
    }
    const auto codes = [&](int i) { return kOffsets ? base + offsets[kOffsets ? i : 0] : pointers[kOffsets ? 0 : i]; };
    const bool copies_scales = kScaleChunks > 0 && thread < C::kSlots * kScaleChunks;
    const std::byte* scales = nullptr;
    if (copies_scales) {
      const int slot = thread / kScaleSplit;
      const ProductMatrix& matrix = kFused && slot >= C::kSlots / 2 ? params_.second : params_.first;
      scales = task.weights + matrix.scales + slot_tile(slot) * tile_scales + thread % kScaleSplit * 16;
    }
    const uint32_t row_offset = C::kRowsAt + thread / 8 * kRowBytes + 16 * (chunk ^ (thread / 8 % 8));

    // One stage, `ahead` stages beyond the pointers.
    const auto copy = [&](int ahead) {
      BarrierWait(empty_ + 8 * place_.stage, place_.phase ^ 1);
      const uint32_t to_codes = shared_ + C::kCodesAt + place_.stage * C::kCodes + thread * 16;
      const uint32_t to_rows = shared_ + place_.stage * C::kRows + row_offset;
#pragma unroll
      for (int i = 0; i < kCodePointers; ++i) {
#pragma unroll
        for (int j = 0; j < kCopiesEach; ++j) {
          CopyAsync(to_codes + (i * kCopiesEach + j) * 128 * 16, codes(i) + j * 128 * 16 + ahead * C::kSlotCodes);
        }
      }
      if (copies_scales) {
        CopyAsync(shared_ + C::kScalesAt + place_.stage * C::kScales + thread * 16, scales + ahead * C::kSlotScales);
      }
#pragma unroll
      for (int i = 0; i < kRowCopies; ++i) CopyAsync(to_rows + i * 16 * kRowBytes, in[i] + ahead * kRowBytes);
      Commit();
    };
    const auto advance = [&](int stages) {
#pragma unroll
      for (int i = 0; i < (kOffsets ? 1 : kCodePointers); ++i) pointers[i] += kOffsets ? 0 : stages * C::kSlotCodes;
      if constexpr (kOffsets) base += stages * C::kSlotCodes;
#pragma unroll
      for (int i = 0; i < kRowCopies; ++i) in[i] += stages * kRowBytes;
      scales += stages * C::kSlotScales;
    };
    const int whole = col_blocks / kStageBlocks;
    int s = 0;
    for (; s + kUnroll <= whole; s += kUnroll) {
#pragma unroll
      for (int ahead = 0; ahead < kUnroll; ++ahead) copy(ahead);
      advance(kUnroll);
    }
    if (kUnroll > 1) {
#pragma unroll 1
      for (; s < whole; ++s) copy(0), advance(1);
    }
    if (col_blocks % kStageBlocks != 0) {  // half a stage: the other half is zeros, of weights and of rows
      BarrierWait(empty_ + 8 * place_.stage, place_.phase ^ 1);
      std::byte* const shared = static_cast<std::byte*>(__cvta_shared_to_generic(shared_));
#pragma unroll
      for (int i = 0; i < kCodePointers; ++i) {
#pragma unroll
        for (int j = 0; j < kCopiesEach; ++j) {
          const int at = thread + 128 * (i * kCopiesEach + j);
          const bool valid = at % kCodeChunks < kCodeChunks / 2;
          CopyAsync16(shared + C::kCodesAt + place_.stage * C::kCodes + at * 16, codes(i) + (valid ? j * 128 * 16 : 0), valid);
        }
      }
      if (copies_scales) {
        const bool valid = thread % kScaleSplit < kScaleChunks / 2;
        CopyAsync16(shared + C::kScalesAt + place_.stage * C::kScales + thread * 16, valid ? scales : task.weights, valid);
      }
#pragma unroll
      for (int i = 0; i < kRowCopies; ++i) {
        CopyAsync16(shared + place_.stage * C::kRows + row_offset + i * 16 * kRowBytes,
                    chunk < 4 ? in[i] : static_cast<const std::byte*>(params_.in), chunk < 4);
      }
      Commit();
    }
  }

  // After the last tile.
  __device__ void Finish() {
    CopyAsyncWait<0>();
    FenceForTensorCores();
    for (; unsignaled_ > 0; --unsignaled_, signaled_.Next()) BarrierArrive(full_ + 8 * signaled_.stage);
  }

 private:
  static constexpr int kCodeChunks = C::kSlotCodes / 16, kScaleChunks = C::kSlotScales / 16;  // of a slot in a stage
  static constexpr int kScaleSplit = kScaleChunks > 0 ? kScaleChunks : 1;
  static constexpr int kCodeCopies = C::kSlots * kCodeChunks / 128;  // of a thread in a stage
  // Copies that one pointer serves: those of one slot.
  static constexpr int kCopiesEach = kCodeChunks > 128 ? kCodeChunks / 128 : 1;
  static constexpr int kCodePointers = kCodeCopies / kCopiesEach;
  static constexpr bool kOffsets = kCodePointers > 6;  // too many for 64 bits each, and for several stages at once
  static constexpr int kUnroll = kOffsets ? 1 : kCodePointers > 4 ? 2 : 4;

  __device__ static void CopyAsync(uint32_t shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
  }

  __device__ void Commit() {
    CopyAsyncCommit();
    place_.Next();
    if (unsignaled_ < C::kInFlight) {
      ++unsignaled_;
      return;
    }
    CopyAsyncWait<C::kInFlight>();
    FenceForTensorCores();
    BarrierArrive(full_ + 8 * signaled_.stage);
    signaled_.Next();
  }

  const ProductParams& params_;
  uint32_t shared_, full_, empty_;
  Place<C::kStages> place_, signaled_;
  int unsignaled_ = 0;  // stages whose copies are under way
};

// The consumers' sums: the tile's first kN rows by this warpgroup's 64 rows of weights. A warp's rows g and g + 8 are
// `low` and `high`: bytes of their codes and scales from the start of a stage's, in units of one block of one row.
template <class C, DType kType, int kN>
__device__ __forceinline__ void Multiply(int stages, const std::byte* shared, int low, int high, uint32_t full, uint32_t empty,
                                         Place<C::kStages>* place, float (&sum)[kN / 2]) {
  using Codes = Decoder<kType, __nv_bfloat16>;
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  uint32_t weights[kStageBlocks][8];  // two m64k16 operands a block
  int last_stage = -1;
  for (int s = 0; s < stages; ++s) {
    BarrierWait(full + 8 * place->stage, place->phase);
    const std::byte* codes = shared + C::kCodesAt + place->stage * C::kCodes;
    const std::byte* scales = shared + C::kScalesAt + place->stage * C::kScales;
    const uint32_t rows = RowsDescriptorLow(SharedAddress(shared + C::kRowsAt + place->stage * C::kRows));
#pragma unroll
    for (int block = 0; block < kStageBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (half == 0 ? low : high) + 16 * block;
        uint32_t pairs[4];
        Codes::Fragment(codes + row * Format<kType>::kCodeBytes, g, q,
                        Codes::MakeScale(Codes::LoadScaleBits(scales + row * Format<kType>::kScaleBytes)), pairs);
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[block][2 * i + half] = pairs[i];
      }
      WgmmaFence();
      Wgmma<kN>::Run(sum, &weights[block][0], rows + block * 4);
      Wgmma<kN>::Run(sum, &weights[block][4], rows + block * 4 + 2);
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

// Outputs [count][kColumns] in `staged` to memory: 16 bytes a thread along a row.
template <typename T, int kColumns>
__device__ __forceinline__ void StoreRows(const ProductParams& params, const ProductTask& task, const TaskRows& rows, int first,
                                          int count, int first_column, const std::byte* staged, int pitch) {
  constexpr int kPerChunk = 16 / sizeof(T), kChunks = kColumns / kPerChunk;
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
        if constexpr (sizeof(T) == 4)
          target[e] = params.accumulate ? target[e] + source[e] : source[e];
        else
          target[e] = source[e];
      }
    }
  }
}

// This warpgroup's outputs, through `staged` (C::kOutBytes): fused, sum[4j] and sum[4j + 1] of each j; else all.
template <class C, bool kFused, int kN>
__device__ __forceinline__ void Store(const ProductParams& params, const ProductTask& task, const TaskRows& rows,
                                      const ProductTile& tile, int first_column, const float (&sum)[kN / 2], std::byte* staged) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / kWarpSize % 4, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, q = lane % 4;
  const int barrier = 1 + warpgroup;
  if (params.out_type == DType::kF32) {
    constexpr int kPitch = C::kOutPitchF32, kSlice = C::kTokens / 2;  // half the rows at a time
    static_assert(kSlice * kPitch <= C::kOutBytes);
#pragma unroll
    for (int slice = 0; slice < (kN + kSlice - 1) / kSlice; ++slice) {
      NamedBarrier<128>(barrier);
#pragma unroll
      for (int j = slice * kSlice / 8; j < kN / 8 && j < (slice + 1) * kSlice / 8; ++j) {
#pragma unroll
        for (int i = 0; i < (kFused ? 2 : 4); ++i) {
          const int token = 8 * j + 2 * q + (i & 1) - slice * kSlice;
          const int column = (kFused ? 8 : 16) * warp + g + 8 * (i >> 1);
          *reinterpret_cast<float*>(staged + token * kPitch + 4 * column) = sum[4 * j + i];
        }
      }
      NamedBarrier<128>(barrier);
      StoreRows<float, C::kOutColumns>(params, task, rows, tile.first + slice * kSlice, min(kSlice, tile.count - slice * kSlice),
                                       first_column, staged, kPitch);
    }
    return;
  }
  const auto pack = [&](int i) { return PackPair<__nv_bfloat16>(sum[i], sum[i + 1]); };
  NamedBarrier<128>(barrier);
  if constexpr (kFused) {
    // Matrices of a store: this warp's 8 columns for 4 times 8 rows.
    const uint32_t address = SharedAddress(staged) + lane * C::kOutPitch + warp * 16;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 4) {
      const int last = j + 2 < kN / 8 ? 4 * j + 8 : 4 * j;  // a width of 16 mod 32: the last two matrices go beyond it
      StoreMatrix4Transposed(address + j * 8 * C::kOutPitch, pack(4 * j), pack(4 * j + 4), pack(last), pack(last + 4));
    }
  } else {
    // Matrices of a store: columns 0-7 and 8-15 of this warp's 16, for eight rows and the next eight.
    const uint32_t address = SharedAddress(staged) + (lane % 8 + lane / 16 * 8) * C::kOutPitch + warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 2) {
      StoreMatrix4Transposed(address + j * 8 * C::kOutPitch, pack(4 * j), pack(4 * j + 2), pack(4 * j + 4), pack(4 * j + 6));
    }
  }
  NamedBarrier<128>(barrier);
  StoreRows<__nv_bfloat16, C::kOutColumns>(params, task, rows, tile.first, tile.count, first_column, staged, C::kOutPitch);
}

// One tile of the consumers: products, biases, SwiGLU, stores. Fused, a warp's rows g are 8 rows of gate and its rows g
// + 8 the same 8 rows of up.
template <class C, DType kType, bool kFused, int kN>
__device__ __forceinline__ void Consume(const ProductParams& params, const ProductTask& task, const TaskRows& rows,
                                        const ProductTile& tile, std::byte* shared, uint32_t full, uint32_t empty,
                                        Place<C::kStages>* place) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / kWarpSize % 4, g = threadIdx.x % kWarpSize / 4;
  const int stages = (params.k / 32 + kStageBlocks - 1) / kStageBlocks;
  const int slot = kFused ? 2 * warpgroup + warp / 2 : 4 * warpgroup + warp;
  const int low = slot * 16 * kStageBlocks + g + (kFused ? warp % 2 * 8 : 0);
  const int high = kFused ? low + C::kSlots / 2 * 16 * kStageBlocks : low + 8;
  float sum[kN / 2];
  Multiply<C, kType, kN>(stages, shared, low, high, full, empty, place, sum);

  const int first_column = tile.panel * C::kPanelRows + warpgroup * C::kOutColumns;
  if (first_column >= params.n) return;
  constexpr float kScale = kSumScale<kType, __nv_bfloat16>;
  const int column = first_column + (kFused ? 8 : 16) * warp + g;
  const float* first_bias = BiasOf(params, task, params.first);
  const float* high_bias = kFused ? BiasOf(params, task, params.second) : first_bias;
  const int high_column = kFused ? column : column + 8;
  const float bias_low = first_bias != nullptr && column < params.n ? first_bias[column] : 0.0f;
  const float bias_high = high_bias != nullptr && high_column < params.n ? high_bias[high_column] : 0.0f;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = sum[i] * kScale + ((i & 2) ? bias_high : bias_low);
  if constexpr (kFused) {
#pragma unroll
    for (int i = 0; i < kN / 2; i += 4) {
      sum[i] = Glu(sum[i], sum[i + 2], params);
      sum[i + 1] = Glu(sum[i + 1], sum[i + 3], params);
    }
  }
  Store<C, kFused, kN>(params, task, rows, tile, first_column, sum, shared + C::kOutAt + warpgroup * C::kOutBytes);
}

#endif  // FERRY_HAS_WGMMA

// Grid: at most the number of multiprocessors; block b computes tiles b, b + grid, ... Block: C::kThreads.
// Dynamic shared memory: C::kBytes.
template <DType kType, bool kFused, int kConsumers>
__global__ void __launch_bounds__(128 * (kConsumers + 1), 1) ProductsWgmmaKernel(const __grid_constant__ ProductParams params) {
#if FERRY_HAS_WGMMA
  using C = Config<kType, kFused, kConsumers>;
  extern __shared__ std::byte dynamic[];
  std::byte* shared = dynamic + (1024 - SharedAddress(dynamic) % 1024) % 1024;
  const uint32_t full = SharedAddress(shared + C::kBarriersAt), empty = full + 8 * C::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(full + 8 * s, 128);
      BarrierInit(empty + 8 * s, 4 * kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int panels = (params.n + C::kPanelRows - 1) / C::kPanelRows;
  if (threadIdx.x / 128 == kConsumers) {
    LowerRegisters<kProducerRegisters>();
    Producer<C, kType, kFused> producer(params, shared, full, empty);
    for (int t = blockIdx.x; t < params.num_tiles; t += gridDim.x) {
      const ProductTile tile = TileOf(params, t, C::kTokens, panels);
      const ProductTask& task = params.tasks[tile.task];
      const TaskRows rows = RowsOf(params, task);
      if (rows.count <= tile.first) continue;
      WithWidth<kConsumers>(tile.count, [&]<int kN>() { producer.template Tile<kN / 16>(task, rows, tile); });
    }
    producer.Finish();
  } else {
    RaiseRegisters<C::kConsumerRegisters>();
    Place<C::kStages> place;
    for (int t = blockIdx.x; t < params.num_tiles; t += gridDim.x) {
      const ProductTile tile = TileOf(params, t, C::kTokens, panels);
      const ProductTask& task = params.tasks[tile.task];
      const TaskRows rows = RowsOf(params, task);
      if (rows.count <= tile.first) continue;
      WithWidth<kConsumers>(
          tile.count, [&]<int kN>() { Consume<C, kType, kFused, kN>(params, task, rows, tile, shared, full, empty, &place); });
    }
  }
#endif
}

template <DType kType, bool kFused, int kConsumers>
cudaError_t LaunchTiles(const ProductDevice& device, ProductParams& params, cudaStream_t stream) {
  using C = Config<kType, kFused, kConsumers>;
  AssignTiles(&params, C::kTokens, C::kPanelRows);
  if (params.num_tiles == 0) return cudaSuccess;
  const int blocks = params.num_tiles < device.num_sms ? params.num_tiles : device.num_sms;
  ProductsWgmmaKernel<kType, kFused, kConsumers><<<blocks, C::kThreads, C::kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <DType kType, bool kFused>
cudaError_t Launch(const ProductDevice& device, ProductParams& params, cudaStream_t stream) {
  ProductTask small[kMaxTasks];
  int num_small = 0, num_large = 0;
  for (int t = 0; t < params.num_tasks; ++t) {
    if (params.tasks[t].rows <= 64)
      small[num_small++] = params.tasks[t];
    else
      params.tasks[num_large++] = params.tasks[t];
  }
  params.num_tasks = num_large;
  if (const cudaError_t error = LaunchTiles<kType, kFused, 3>(device, params, stream); error != cudaSuccess) return error;
  std::copy(small, small + num_small, params.tasks);
  params.num_tasks = num_small;
  return LaunchTiles<kType, kFused, 4>(device, params, stream);
}

template <DType kType, bool kFused, int kConsumers>
cudaError_t Prepare() {
  return cudaFuncSetAttribute(ProductsWgmmaKernel<kType, kFused, kConsumers>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Config<kType, kFused, kConsumers>::kBytes);
}

}  // namespace

cudaError_t PrepareProductsWgmma(bool* usable) {
  // A build for plain sm_90 leaves the kernels empty.
  cudaFuncAttributes attributes;
  FERRY_CUDA_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, ProductsWgmmaKernel<DType::kMXFP4, true, 3>));
  *usable = attributes.binaryVersion == 90 && attributes.numRegs > 100;
  if (!*usable) return cudaSuccess;
  cudaError_t result = cudaSuccess;
  ForEachFormat(DirectTypes{}, [&]<DType kType>() {
    for (const cudaError_t one :
         {Prepare<kType, false, 3>(), Prepare<kType, true, 3>(), Prepare<kType, false, 4>(), Prepare<kType, true, 4>()}) {
      if (result == cudaSuccess) result = one;
    }
  });
  return result;
}

cudaError_t LaunchProductsWgmma(const ProductDevice& device, ProductParams params, bool fused, cudaStream_t stream) {
  if (params.act_type != DType::kBF16) return cudaErrorInvalidValue;
  return WithDirectType(params.first.type, [&]<DType kType>() {
    return fused ? Launch<kType, true>(device, params, stream) : Launch<kType, false>(device, params, stream);
  });
}

}  // namespace ferry::cuda
