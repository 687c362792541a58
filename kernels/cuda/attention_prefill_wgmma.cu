#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/attention_wgmma.cuh"

namespace ferry::cuda {
namespace {

constexpr int kHeadDim = 64;
constexpr int kKeys = 64;  // positions of a tile
constexpr int kTileBytes = kKeys * kHeadDim * 2;
constexpr int kStages = 8;     // tiles of keys and of values in shared memory: with 4 the loads did not keep up (312 TFLOP/s)
constexpr int kConsumers = 3;  // warpgroups of 64 (row, query head) pairs
constexpr int kPairsPerBlock = kConsumers * 64;
constexpr int kThreads = kConsumers * 128 + 128;  // and a warpgroup whose first warp loads
constexpr int kSharedBytes = 2 * kStages * kTileBytes + 1024;

#if FERRY_HAS_WGMMA

constexpr int kConsumerWarps = kConsumers * 4;
constexpr int kConsumerRegisters = 160, kLoaderRegisters = 32;  // of the 128 that every thread starts with

struct Barriers {
  uint64_t full_keys[kStages], full_values[kStages], empty_keys[kStages], empty_values[kStages];
};

// One warp loads a tile, 128 bytes a row, permuted in the 128-byte manner: four rows an instruction. Positions outside
// [begin, end) become zeros.
__device__ inline void LoadTile(const KvPlane& plane, const TableWalk<kKeys>& blocks, int first, int begin, int end,
                                unsigned char* tile) {
  const int lane = threadIdx.x % kWarpSize, row = lane / 8, chunk = lane % 8;
  unsigned char* const even = tile + row * 128 + (chunk ^ row) * 16;  // rows 8i + row, and 8i + 4 + row
  unsigned char* const odd = tile + (row + 4) * 128 + (chunk ^ (row + 4)) * 16;
  const auto load = [&](auto valid) {
#pragma unroll
    for (int b = 0; b < kKeys / kKvBlock; ++b) {
      const std::byte* const source = plane.codes + blocks.block[b] * plane.block_codes + row * 128 + chunk * 16;
#pragma unroll
      for (int i = 0; i < kKvBlock / 4; ++i) {
        CopyAsync16((i % 2 == 0 ? even : odd) + (b * kKvBlock / 8 + i / 2) * 1024, source + i * 4 * 128,
                    valid(first + b * kKvBlock + i * 4 + row));
      }
    }
  };
  if (first >= begin && first + kKeys <= end) {
    load([](int) { return true; });
  } else {
    load([&](int key) { return key >= begin && key < end; });
  }
}

#endif  // FERRY_HAS_WGMMA

// The same mapping as PrefillKernel (attention_prefill.cu), by warpgroup products: one warp keeps kStages tiles of
// keys and values coming, three warpgroups of 64 pairs each multiply. A warpgroup has the scores of the next tile
// computed before its values of this one, so that its softmax runs beside tensor work of its own and of the others.
// Grid: [ceil(pairs / kPairsPerBlock), num_kv_heads]; tiles with the most keys start first. Block: kThreads.
// Bound: 4 * heads * head_dim flops for every (row, key it sees); the exponentials, one for 256 flops, take as long
// on the special function units (16 a clock) as the products on the tensor cores (4096 flops a clock).
template <typename Act>
__global__ void __launch_bounds__(kThreads, 1) PrefillWgmmaKernel(PrefillParams p) {
#if FERRY_HAS_WGMMA
  extern __shared__ unsigned char unaligned[];
  __shared__ Barriers barriers;
  unsigned char* const shared = unaligned + (1024 - SharedAddress(unaligned) % 1024) % 1024;
  const auto key_tile = [&](int stage) { return shared + stage * kTileBytes; };
  const auto value_tile = [&](int stage) { return shared + (kStages + stage) * kTileBytes; };

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, kv_head = blockIdx.y;
  const int64_t first_pair = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kPairsPerBlock;
  const int64_t last_pair = min(first_pair + kPairsPerBlock, p.pairs) - 1;
  const int block_first = p.first_position + static_cast<int>(first_pair / p.group);
  const int block_last = p.first_position + static_cast<int>(last_pair / p.group);
  const int end = block_last + 1, begin = p.window > 0 ? max(0, block_first - p.window + 1) : 0;
  const int first_key = begin / kKeys * kKeys, num_tiles = (end - first_key + kKeys - 1) / kKeys;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(SharedAddress(&barriers.full_keys[s]), kWarpSize);
      BarrierInit(SharedAddress(&barriers.full_values[s]), kWarpSize);
      BarrierInit(SharedAddress(&barriers.empty_keys[s]), kConsumerWarps);
      BarrierInit(SharedAddress(&barriers.empty_values[s]), kConsumerWarps);
    }
  }
  __syncthreads();

  if (warp >= kConsumerWarps) {
    LowerRegisters<kLoaderRegisters>();
    if (warp > kConsumerWarps) return;
    const KvPlane keys = PlaneOf<kHeadDim, false>(p.keys, p.num_blocks, p.num_kv_heads, kv_head);
    const KvPlane values = PlaneOf<kHeadDim, false>(p.values, p.num_blocks, p.num_kv_heads, kv_head);
    TableWalk<kKeys> blocks;
    blocks.Start(p.table, p.table_size, first_key);
    // A tile is announced when two more have been asked for: by then it is there, or nearly.
    const auto announce = [&](int tile) {
      FenceForTensorCores();
      BarrierArrive(SharedAddress(&barriers.full_keys[tile % kStages]));
      BarrierArrive(SharedAddress(&barriers.full_values[tile % kStages]));
    };
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int stage = tile % kStages, at = first_key + tile * kKeys;
      const uint32_t parity = (tile / kStages & 1) ^ 1;
      BarrierWait(SharedAddress(&barriers.empty_keys[stage]), parity);
      LoadTile(keys, blocks, at, begin, end, key_tile(stage));
      BarrierWait(SharedAddress(&barriers.empty_values[stage]), parity);
      LoadTile(values, blocks, at, begin, end, value_tile(stage));
      CopyAsyncCommit();
      blocks.Step();
      if (tile >= 2) {
        CopyAsyncWait<2>();
        announce(tile - 2);
      }
    }
    CopyAsyncWait<0>();
    for (int tile = max(0, num_tiles - 2); tile < num_tiles; ++tile) announce(tile);
  } else {
    RaiseRegisters<kConsumerRegisters>();
    int position[2];
    uint32_t queries[kHeadDim / 16][4];
    {
      const Act* row[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t pair = min(first_pair + warp * 16 + h * 8 + lane / 4, last_pair);
        position[h] = p.first_position + static_cast<int>(pair / p.group);
        row[h] = static_cast<const Act*>(p.q) + pair / p.group * p.q_stride +
                 (static_cast<int64_t>(kv_head) * p.group + pair % p.group) * kHeadDim;
      }
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) LoadQueries<Act>(row[0], row[1], step * 16, queries[step]);
    }

    float sums[32], scores[32], largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, factor[2] = {1.0f, 1.0f};
    uint32_t weights[kKeys / 16][4];
#pragma unroll
    for (int i = 0; i < 32; ++i) sums[i] = 0.0f;

    const auto multiply_keys = [&](int tile) {
      const uint64_t keys = TileDescriptor(key_tile(tile % kStages));
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) WgmmaF16<0>(scores, queries[step], keys + 2 * step, step > 0);
      WgmmaCommit();
    };
    const auto multiply_values = [&](int tile) {
      const uint64_t values = TileDescriptor(value_tile(tile % kStages));
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) WgmmaF16<1>(sums, weights[step], values + 128 * step, 1);
      WgmmaCommit();
    };
    const auto wait_for = [&](uint64_t* full, int tile) {
      BarrierWait(SharedAddress(full + tile % kStages), tile / kStages & 1);
    };
    const auto release = [&](uint64_t* empty, int tile) {
      if (lane == 0) BarrierArrive(SharedAddress(empty + tile % kStages));
    };
    // Masks the scores of a tile and turns them into weights; `factor` is what earlier sums are to be multiplied by.
    const auto softmax = [&](int tile) {
      const int at = first_key + tile * kKeys;
      if (at + kKeys > block_first + 1 || (p.window > 0 && at <= block_last - p.window)) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const int key = at + i / 4 * 8 + lane % 4 * 2 + i % 2, row = position[i / 2 % 2];
          if (key > row || (p.window > 0 && key <= row - p.window)) scores[i] = -INFINITY;
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float now = largest[h];
#pragma unroll
        for (int i = 2 * h; i < 32; i += 4) now = fmaxf(now, fmaxf(scores[i], scores[i + 1]));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
        const float base = now == -INFINITY ? 0.0f : now, minus = -base * p.scale_log2;
        factor[h] = Exp2((largest[h] - base) * p.scale_log2);
        largest[h] = now;
        float sum = 0.0f;
#pragma unroll
        for (int i = 2 * h; i < 32; i += 4) {
          scores[i] = Exp2(fmaf(scores[i], p.scale_log2, minus));
          scores[i + 1] = Exp2(fmaf(scores[i + 1], p.scale_log2, minus));
          sum += scores[i] + scores[i + 1];
        }
        total[h] = fmaf(total[h], factor[h], sum);
      }
    };
    const auto pack = [&] {
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[step][i] = PackF16(scores[8 * step + 2 * i], scores[8 * step + 2 * i + 1]);
      }
    };

    wait_for(barriers.full_keys, 0);
    multiply_keys(0);
    WgmmaWait<0>();
    Pin(scores);
    release(barriers.empty_keys, 0);
    softmax(0);
    pack();
    for (int tile = 0; tile + 1 < num_tiles; ++tile) {
      wait_for(barriers.full_keys, tile + 1);
      multiply_keys(tile + 1);
      wait_for(barriers.full_values, tile);
      multiply_values(tile);
      WgmmaWait<1>();
      Pin(scores);
      release(barriers.empty_keys, tile + 1);
      softmax(tile + 1);
      Pin(scores);
      WgmmaWait<0>();
      Pin(sums);
      release(barriers.empty_values, tile);
      if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < 32; ++i) sums[i] *= factor[i / 2 % 2];
      }
      pack();
    }
    wait_for(barriers.full_values, num_tiles - 1);
    multiply_values(num_tiles - 1);
    WgmmaWait<0>();
    Pin(sums);

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t pair = first_pair + warp * 16 + h * 8 + lane / 4;
      float sum = total[h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (pair > last_pair) continue;
      const int64_t head = static_cast<int64_t>(kv_head) * p.group + pair % p.group;
      float scale = JoinSink(p.sinks, head, largest[h] * p.scale_log2, sum);
      scale /= sum;
      Act* const out = static_cast<Act*>(p.out) + pair / p.group * p.out_stride + head * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        alignas(4) Act two[2] = {FromFloat<Act>(sums[4 * d + 2 * h] * scale), FromFloat<Act>(sums[4 * d + 2 * h + 1] * scale)};
        *reinterpret_cast<uint32_t*>(out + d * 8) = *reinterpret_cast<const uint32_t*>(two);
      }
    }
  }
#endif  // FERRY_HAS_WGMMA
}

}  // namespace

cudaError_t LaunchPrefillWgmma(const PrefillParams& p, DType act, cudaStream_t stream) {
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(p.pairs, kPairsPerBlock), p.num_kv_heads, 1, &grid));
  return WithActivation(act, [&](auto act_type) {
    const auto kernel = PrefillWgmmaKernel<decltype(act_type)>;
    FERRY_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    kernel<<<grid, kThreads, kSharedBytes, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace ferry::cuda
