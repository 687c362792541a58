#pragma once

// How decode attention over a latent cache cuts a row's positions: apart from the kernels, so that it can be tested without a
// GPU.

#include <cstdint>

#include "kernels/cuda/rope_store.h"

#ifdef __CUDACC__
#define FERRY_HOST_DEVICE __host__ __device__
#else
#define FERRY_HOST_DEVICE
#endif

namespace ferry::cuda {

inline constexpr int kMinCutBlocks = 4;  // 128 positions: a cut's sums weigh as much as 113 keys of 16 heads

// Cut i is cache blocks [first_block + i * blocks, ...) of the sequence, up to the row's own block.
struct LatentCuts {
  int first_block = 0, blocks = 0, count = 0;
};

// The cuts of a row at `position`: at most `most` of equal size. They depend on the position alone, so that the row has the same
// bits beside any others. window: 0 for none.
FERRY_HOST_DEVICE inline LatentCuts LatentCutsOf(int position, int window, int most) {
  const int first = window > 0 && position >= window ? (position - window + 1) / kKvBlock : 0;
  const int all = position / kKvBlock - first + 1;
  const int even = (all + most - 1) / most, blocks = even > kMinCutBlocks ? even : kMinCutBlocks;
  return {first, blocks, (all + blocks - 1) / blocks};
}

// As many cuts as a row at `max_position` or before can have.
inline int64_t MaxLatentCuts(int64_t max_position, int64_t window, int64_t most) {
  int64_t blocks = max_position / kKvBlock + 1;
  if (window > 0 && (window - 1) / kKvBlock + 2 < blocks) blocks = (window - 1) / kKvBlock + 2;
  const int64_t cuts = (blocks + kMinCutBlocks - 1) / kMinCutBlocks;
  return cuts < most ? cuts : most;
}

}  // namespace ferry::cuda
