#pragma once

// What the two attention kernels share: tiles of keys or values in shared memory, and the products on them.

#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_code.cuh"

namespace ferry::cuda {

// A tile in shared memory is rows of head_dim F16 numbers, 16 bytes of padding after each: the eight rows that one
// ldmatrix reads then start in different banks.
template <int kHeadDim>
inline constexpr int kTileRowBytes = kHeadDim * 2 + 16;

// One plane (keys or values) of one kv head.
struct KvPlane {
  const std::byte* codes;   // of the kv head in block 0
  const std::byte* scales;  // Q8_0: likewise; else unused
  int64_t block_codes;      // bytes from block to block
  int64_t block_scales;
};

template <int kHeadDim, bool kQ8>
__device__ inline KvPlane PlaneOf(const std::byte* plane, int64_t num_blocks, int64_t num_kv_heads, int kv_head) {
  constexpr int64_t kHeadBytes = kKvBlock * kHeadDim * (kQ8 ? 1 : 2), kHeadScales = kKvBlock * kHeadDim / kKvQuant * 2;
  return {plane + kv_head * kHeadBytes, plane + num_blocks * num_kv_heads * kHeadBytes + kv_head * kHeadScales,
          num_kv_heads * kHeadBytes, num_kv_heads * kHeadScales};
}

// The cache blocks of kKeys positions, and the place of the next ones in the sequence's table.
template <int kKeys>
struct TableWalk {
  const int32_t* table;
  int table_size, next;
  int32_t block[kKeys / kKvBlock];

  // Starts at position `first`, a multiple of 32.
  __device__ void Start(const int32_t* sequence_table, int size, int first) {
    table = sequence_table;
    table_size = size;
    next = first / kKvBlock % size;
    Step();
  }
  // On to the kKeys positions that follow. Blocks past the sequence's end are some of its blocks, not to be read.
  __device__ void Step() {
#pragma unroll
    for (int i = 0; i < kKeys / kKvBlock; ++i) {
      block[i] = table[next];
      next = next + 1 == table_size ? 0 : next + 1;
    }
  }
};

// Loads kKeys positions of a plane, from `first` on, into a tile, with kThreads threads (`thread` is this one's
// number). Positions outside [begin, end) become zeros and are not read. F16 loads are asynchronous: commit and wait.
// Q8_0 goes through registers: Fetch reads, Store widens into the tile, and the products of another tile may run in
// between.
template <int kHeadDim, int kKeys, int kThreads>
struct F16Loader {
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte pieces of a row
  static_assert(kKeys * kChunks % kThreads == 0 && kKvBlock * kChunks % kThreads == 0);

  __device__ void Fetch(const KvPlane& plane, const TableWalk<kKeys>& blocks, int first, int begin, int end, unsigned char* tile,
                        int thread) {
#pragma unroll
    for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
      const int piece = i * kThreads + thread, key = piece / kChunks, chunk = piece % kChunks;
      const bool valid = first + key >= begin && first + key < end;
      const int64_t block = blocks.block[i * kThreads / (kKvBlock * kChunks)];
      CopyAsync16(tile + key * kTileRowBytes<kHeadDim> + chunk * 16,
                  plane.codes + block * plane.block_codes + (key % kKvBlock * kHeadDim + chunk * 8) * 2, valid);
    }
  }
  __device__ void Store(unsigned char* tile, int thread) {}
};

template <int kHeadDim, int kKeys, int kThreads>
struct Q8Loader {
  static constexpr int kChunks = kHeadDim / 16;  // pieces of 16 codes
  static constexpr int kPieces = kKeys * kChunks / kThreads;
  static_assert(kKeys * kChunks % kThreads == 0);
  uint4 codes[kPieces];
  __half scales[kPieces];

  __device__ void Fetch(const KvPlane& plane, const TableWalk<kKeys>& blocks, int first, int begin, int end, unsigned char* tile,
                        int thread) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreads + thread, key = piece / kChunks, chunk = piece % kChunks;
      codes[i] = uint4{0, 0, 0, 0};
      scales[i] = __ushort_as_half(0);
      if (first + key < begin || first + key >= end) continue;
      int64_t block = blocks.block[0];
#pragma unroll
      for (int b = 1; b < kKeys / kKvBlock; ++b) block = key / kKvBlock == b ? blocks.block[b] : block;
      const int in_block = key % kKvBlock;
      codes[i] = *reinterpret_cast<const uint4*>(plane.codes + block * plane.block_codes + in_block * kHeadDim + chunk * 16);
      scales[i] = reinterpret_cast<const __half*>(plane.scales +
                                                  block * plane.block_scales)[in_block * (kHeadDim / kKvQuant) + chunk / 2];
    }
  }
  __device__ void Store(unsigned char* tile, int thread) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreads + thread, key = piece / kChunks, chunk = piece % kChunks;
      const __half2 scale = __half2half2(scales[i]), bias = __half2half2(__ushort_as_half(0x6480));  // 1152
      const uint32_t words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
      uint32_t pairs[8];
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        // A byte under 0x64 is the F16 number 1024 + byte; flipping its sign bit adds 128. Exact up to the product.
        const uint32_t wide = __byte_perm(words[w / 2] ^ 0x80808080u, 0x64646464u, w % 2 == 0 ? 0x4140 : 0x4342);
        const __half2 value = __hmul2(__hsub2(*reinterpret_cast<const __half2*>(&wide), bias), scale);
        pairs[w] = *reinterpret_cast<const uint32_t*>(&value);
      }
      uint4* const target = reinterpret_cast<uint4*>(tile + key * kTileRowBytes<kHeadDim> + chunk * 32);
      target[0] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
      target[1] = uint4{pairs[4], pairs[5], pairs[6], pairs[7]};
    }
  }
};

template <int kHeadDim, int kKeys, int kThreads, bool kQ8>
struct LoaderOf {
  using Type = F16Loader<kHeadDim, kKeys, kThreads>;
};
template <int kHeadDim, int kKeys, int kThreads>
struct LoaderOf<kHeadDim, kKeys, kThreads, true> {
  using Type = Q8Loader<kHeadDim, kKeys, kThreads>;
};

// Two neighbouring numbers of an activation row as F16, saturated.
template <typename Act>
__device__ inline uint32_t AsF16Pair(uint32_t pair) {
  if constexpr (std::is_same_v<Act, __half>) {
    return pair;
  } else {
    const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
    const __half a = FromFloat<__half>(low), b = FromFloat<__half>(high);
    return static_cast<uint32_t>(__half_as_ushort(a)) | static_cast<uint32_t>(__half_as_ushort(b)) << 16;
  }
}

// The query fragment of 16 rows and 16 dimensions from dimension `first` on: lane l reads rows `low` (l / 4) and `high`
// (l / 4 + 8), each null for a row of zeros.
template <typename Act>
__device__ inline void LoadQueries(const Act* low, const Act* high, int first, uint32_t (&a)[4]) {
  const int d = first + threadIdx.x % 4 * 2;
  const auto pair = [](const Act* row, int at) {
    return row == nullptr ? 0u : AsF16Pair<Act>(*reinterpret_cast<const uint32_t*>(row + at));
  };
  a[0] = pair(low, d);
  a[1] = pair(high, d);
  a[2] = pair(low, d + 8);
  a[3] = pair(high, d + 8);
}

// scores [16 * kRowTiles rows][8 * kKeyTiles] += queries times the keys of a tile. Of row tile r, lane l holds rows l /
// 4 (elements 0, 1) and l / 4 + 8 (elements 2, 3), columns 8 t + l % 4 * 2 + {0, 1} of key tile t.
template <int kHeadDim, int kRowTiles, int kKeyTiles>
__device__ inline void QueriesTimesKeys(const uint32_t (&queries)[kRowTiles][kHeadDim / 16][4], const unsigned char* tile,
                                        float (&scores)[kRowTiles][kKeyTiles][4]) {
  const int lane = threadIdx.x % kWarpSize;
  // Matrices of one ldmatrix: keys 0-7 of a pair of key tiles, dimensions 0-7 and 8-15 of a step; the same of keys
  // 8-15.
  const uint32_t base = SharedAddress(tile) + (lane / 16 * 8 + lane % 8) * kTileRowBytes<kHeadDim> + lane / 8 % 2 * 16;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kKeyTiles / 2; ++pair) {
      uint32_t b[4];
      LoadMatrix4(b, base + pair * 16 * kTileRowBytes<kHeadDim> + step * 32);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        MmaF16(scores[r][2 * pair], queries[r][step], b[0], b[1]);
        MmaF16(scores[r][2 * pair + 1], queries[r][step], b[2], b[3]);
      }
    }
  }
}

// sums [16 * kRowTiles rows][kHeadDim] += weights times the values of a tile. weights: the scores' places, rounded to
// F16.
template <int kHeadDim, int kRowTiles, int kKeyTiles>
__device__ inline void WeightsTimesValues(const float (&weights)[kRowTiles][kKeyTiles][4], const unsigned char* tile,
                                          float (&sums)[kRowTiles][kHeadDim / 8][4]) {
  const int lane = threadIdx.x % kWarpSize;
  // Matrices of one ldmatrix: keys 0-7 and 8-15 of a step, dimensions 0-7 of a pair of dimension tiles; the same of
  // 8-15.
  const uint32_t base = SharedAddress(tile) + (lane / 8 % 2 * 8 + lane % 8) * kTileRowBytes<kHeadDim> + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < kKeyTiles / 2; ++step) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const float(&left)[4] = weights[r][2 * step], (&right)[4] = weights[r][2 * step + 1];
      a[r][0] = PackF16(left[0], left[1]);
      a[r][1] = PackF16(left[2], left[3]);
      a[r][2] = PackF16(right[0], right[1]);
      a[r][3] = PackF16(right[2], right[3]);
    }
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4Transposed(b, base + step * 16 * kTileRowBytes<kHeadDim> + pair * 32);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        MmaF16(sums[r][2 * pair], a[r], b[0], b[1]);
        MmaF16(sums[r][2 * pair + 1], a[r], b[2], b[3]);
      }
    }
  }
}

// Calls f(std::integral_constant<int, head_dim>) for a head size that has kernels.
template <typename F>
cudaError_t WithHeadDim(int64_t head_dim, F&& f) {
  switch (head_dim) {
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    case 256:
      return f(std::integral_constant<int, 256>{});
    default:
      return cudaErrorInvalidValue;
  }
}

inline constexpr float kLog2E = 1.4426950408889634f;

// Joins a head's sink with a row's weights, whose largest score is `scaled` (times log2(e)) and whose sum is `sum`. Returns the
// factor by which the weighted values are to be multiplied before the division by `sum`. `sinks` may be null.
__device__ inline float JoinSink(const float* sinks, int64_t head, float scaled, float& sum) {
  if (sinks == nullptr) return 1.0f;
  const float sink = sinks[head] * kLog2E, top = fmaxf(scaled, sink);
  const float factor = Exp2(scaled - top);
  sum = fmaf(sum, factor, Exp2(sink - top));
  return factor;
}

// What a prefill kernel computes: LaunchAttentionPrefill's arguments.
struct PrefillParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  const std::byte* keys;
  const std::byte* values;
  int64_t num_blocks;
  int num_kv_heads, group;  // query heads of a kv head
  const int32_t* table;
  int table_size;
  int first_position;
  int64_t pairs;  // rows * group
  int window;     // 0: none
  const float* sinks;
  float scale_log2;  // log2(e) * scale of scores
};

// attention_prefill_wgmma.cu: F16 cache, 64 dimensions, on a GPU and in a build with warpgroup products.
cudaError_t LaunchPrefillWgmma(const PrefillParams& params, DType act, cudaStream_t stream);

}  // namespace ferry::cuda
