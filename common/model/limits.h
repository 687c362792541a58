#pragma once

// The bounds of the models that Ferry runs, for every part that checks one: readers of files, layouts, shared memory, operations
// and kernels. They are far above any known model, and products of two of them stay below 2^63. A backend may take less and says
// so (Ops::CheckModel, Ops::CheckKvCache).

#include <cstdint>

namespace ferry {

inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxWidth = 1 << 20;       // n_embd, n_ff
inline constexpr int64_t kWidthMultiple = 32;       // of n_embd: elements of a quantised block
inline constexpr int64_t kInnerWidthMultiple = 16;  // of widths inside a layer: numbers of a register of floats
inline constexpr int64_t kMaxVocabulary = 1 << 24;
inline constexpr int64_t kMaxContext = int64_t{1} << 31;

inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 256;         // the attention kernels hold a head in registers
inline constexpr int64_t kMaxLatentHeadDim = 1024;  // latent attention: of a query, and of a row of the cache on CPUs
inline constexpr int64_t kMaxLatentRank = 1 << 16;
inline constexpr int64_t kMaxConvTaps = 16;  // of a gated delta net's convolution

inline constexpr int64_t kMaxExperts = 1024;  // of a layer: the routing kernels hold a row's logits in one warp
inline constexpr int64_t kMaxTopK = 16;       // experts of one token

}  // namespace ferry
