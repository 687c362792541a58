#pragma once

// The inner loops of the CPU backend, one table of them per instruction set, chosen at run time.
//
// Everything here is plain pointers, because these functions are compiled several times with different instruction sets: a
// header with inline functions of its own could leave the linker with an AVX-512 copy of them for the whole program. For the
// same reason the sources of one instruction set keep everything but their table in anonymous namespaces.
//
// Row invariance (kernels/ops.h): what a row gives does not depend on the rows beside it. So every path through a kernel adds
// the terms of one output in one order: products of quantised weights block after block along the columns, products of
// float weights in 16 interleaved sums, attention tile after tile of absolute positions.
//
// The functions check nothing; CpuOps does.

#include <cstddef>
#include <cstdint>

#include "common/model/formats/formats.h"
#include "common/model/limits.h"

namespace ferry {

inline constexpr int kBlock = 32;      // columns that share a scale: kTileCols of common/model/tiled_layout.h
inline constexpr int kLanes = 16;      // rows of a tile: kTileRows
inline constexpr int kPanelTiles = 2;  // row tiles a panel product takes at once; 32 rows are one block of the next matrix
inline constexpr int kPanelRows = kPanelTiles * kLanes;
inline constexpr int kAttentionTile = 32;     // positions: kKvBlockTokens of kernels/ops.h
inline constexpr int kAttentionRows = 16;     // rows of one attention task, at most
inline constexpr int64_t kMaxHeadGroup = 64;  // query heads of one kv head

// How finely activations are kept (common/model/formats/format.h). Narrow, for weights of up to 6 bits: one byte a number.
// Halves: the same with an offset for each 16 columns, for weights whose scale covers 16. Wide, for weights of 8 bits, where the
// activations' rounding would be the larger error: a second byte holds 1/128ths of the first one's step. Twice the instructions;
// docs/measurements/cpu.md says how much accuracy they buy. Paired: narrow, but that blocks 2i and 2i + 1 have one scale, for
// MXFP4 where CpuKernels::pairs_blocks; a last block without another has its own.
constexpr int kNumActivations = 4;
// Of a type that is IsQuantized.
constexpr Activations ActivationsFor(DType weights) {
  Activations kind = Activations::kNarrow;
  WithFormat(weights, [&]<DType kType>() { kind = kActivationsOf<Format<kType>>; });
  return kind;
}
constexpr bool IsQuantized(DType weights) {
  bool quantized = false;
  WithFormat(weights, [&]<DType kType>() { quantized = Format<kType>::kInteger; });
  return quantized;
}
constexpr int64_t CodeBytes(Activations kind) { return kind == Activations::kWide ? 64 : 32; }
// With a scale and one or two offsets.
constexpr int64_t BlockBytes(Activations kind) { return CodeBytes(kind) + (kind == Activations::kHalves ? 12 : 8); }

// Activations as the integer kernels read them: each row in blocks of 32 columns,
//
//   blocks   [rows][row_stride bytes], each block BlockBytes(kind) of
//     codes   i8. Narrow and halves: 32, value = code * scale. Wide: 32 high, then 32 low, value = (128 * high + low) * scale.
//             High in [-127, 127], low in [-64, 64]
//     scale   f32. Narrow and halves: max|x| / 127 but at least 2^-60 and at most 2^60; wide: 1/128 of that
//     offset  i32. Narrow: -128 * (sum of the block's codes); wide: -(sum of 128 * high + low); halves: two, each -128 * (sum of
//             the codes of 16 columns)
//   poison   [rows]  f32, NaN where the row holds NaN or infinity, which codes cannot show; else 0. Added to every output
//                    of the row, so that a broken row stays visible
//
// Offsets: weights enter the product as unsigned bytes, code + 128, since the instructions multiply unsigned by signed.
// Wide products are made high codes first, then shifted by 7, then the low ones are added: hence an offset 1/128th.
// Scale and offset lie with the codes so that a kernel of six rows needs six pointers, which fit in registers, not eighteen.
struct QuantizedRows {
  std::byte* blocks = nullptr;
  float* poison = nullptr;
  int64_t row_stride = 0;
};

// The same rows as tile products read them, without offsets: groups of 16 rows, the last one filled up with zeros,
//
//   groups  [ceil(rows / 16)][cols / 32], each RowBlockBytes(kind) of
//     codes   i8 [16 rows][32]. Wide: those of the high codes, then those of the low ones
//     scales  f32 [16]
//
// and paired ones [ceil(rows / 16)][ceil(cols / 64)], with codes [16 rows][64], zeros where the last block has no other.
constexpr int64_t RowBlockBytes(Activations kind) { return kLanes * ((kind == Activations::kWide ? 64 : 32) + 4); }
constexpr int64_t kRowPairBytes = kLanes * (64 + 4);
constexpr int64_t RowGroupBytes(Activations kind, int64_t blocks) {
  return kind == Activations::kPaired ? (blocks + 1) / 2 * kRowPairBytes : blocks * RowBlockBytes(kind);
}

// One panel, the up to 32 rows of W at `codes`, times num_rows rows of activations:
//
//   out[out_row(i)][j] (+)= sum over columns of W[j][c] * in[in_row(i)][c] + bias[j]      j in [0, num_outputs)
//
// in_row(i) is in_rows[i], or i where in_rows is null; out_row likewise.
struct PanelProduct {
  DType dtype = DType::kF32;         // of the weights
  const std::byte* codes = nullptr;  // of the panel's first tile (common/model/tiled_layout.h)
  const std::byte* scales = nullptr;
  const std::byte* row_headers = nullptr;  // of the panel's first row, or null where the type has none
  int64_t num_outputs = 0;                 // in [1, kPanelRows]; tiles = ceil(num_outputs / 16), all of them whole in memory
  int64_t num_blocks = 0;                  // column blocks
  const QuantizedRows* in = nullptr;       // quantised types; CpuKernels::activations_for(dtype)
  const std::byte* groups = nullptr;  // the rows of the product once more, in groups, where CpuKernels::takes_groups; or null
  const float* float_in = nullptr;    // F32, F16, BF16: [rows][float_in_stride]
  int64_t float_in_stride = 0;
  const int32_t* in_rows = nullptr;
  int64_t num_rows = 0;
  float* out = nullptr;  // [rows][out_stride], at the panel's first column
  int64_t out_stride = 0;
  const int32_t* out_rows = nullptr;
  const float* bias = nullptr;  // [num_outputs] or null
  bool accumulate = false;
  const std::byte* next = nullptr;         // codes that this thread multiplies after these, and their scales, to be asked for
  const std::byte* next_scales = nullptr;  // ahead; null: what follows in memory
  std::byte* scratch = nullptr;            // kPanelScratchBytes, 64-byte aligned, of this thread
};
using ProductFunction = void (*)(const PanelProduct& product);
inline constexpr int64_t kPanelScratchBytes = 192 * 1024;

// The up to 16 rows of one sequence, and the query heads of one kv head, against the cache.
struct AttentionTask {
  const std::byte* keys = nullptr;    // the layer's planes (kernels/ops.h, KvLayer)
  const std::byte* values = nullptr;  // null: of a latent cache, whose values are the first value_dim numbers of its keys
  DType key_type = DType::kF16;       // F16 or Q8_0
  DType value_type = DType::kF16;     // likewise
  int64_t num_blocks = 0;             // of the planes: where Q8_0's scales begin
  int64_t num_kv_heads = 0;
  int64_t kv_head = 0;
  int64_t head_dim = 0;            // a multiple of 16 (Q8_0: of 32), at most kMaxLatentHeadDim
  int64_t value_dim = 0;           // of values and of what a head gives, a multiple of 16; head_dim unless the cache is latent
  const int32_t* table = nullptr;  // blocks of the sequence; a ring when shorter than the sequence
  int64_t table_size = 0;
  int64_t first_position = 0;
  int64_t num_rows = 0;
  int64_t window = 0;        // 0: none
  int64_t group = 0;         // query heads, at most kMaxHeadGroup
  const float* q = nullptr;  // [num_rows][q_stride], at the first of those heads
  int64_t q_stride = 0;
  float* out = nullptr;  // likewise
  int64_t out_stride = 0;
  const float* sinks = nullptr;  // [group] or null
  float scale = 1;               // of scores
  float* scratch = nullptr;      // AttentionScratchBytes, 64-byte aligned, of this thread
};
// Bytes of scratch: the tile's keys and values in f32, queries, sums and running maxima of all rows and heads.
constexpr int64_t AttentionScratchBytes(int64_t head_dim, int64_t value_dim, int64_t group) {
  const int64_t vectors = kAttentionRows * group;
  return 4 * ((kAttentionTile + vectors) * (head_dim + value_dim) + 2 * vectors + group * kAttentionTile + 96);
}

// Rows of one sequence through the state S of one value head (kernels/gated_delta.h). Columns of S do not depend on each other.
// Each sum over key elements is kept in four interleaved parts.
struct DeltaTask {
  float* state = nullptr;  // [head_dim / 16][head_dim][16]
  int64_t head_dim = 0;    // a multiple of 16
  int64_t num_rows = 0;
  const float* q = nullptr;  // [num_rows][stride], at this head; likewise k and v
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t stride = 0;
  const float* decay = nullptr;  // [num_rows][gate_stride]
  const float* share = nullptr;  // likewise
  int64_t gate_stride = 0;
  float* out = nullptr;  // [num_rows][out_stride]: S' q
  int64_t out_stride = 0;
};

// GluParams of kernels/expert_groups.h.
struct GluNumbers {
  float alpha, limit, up_offset;
};

struct CpuKernels {
  const char* name;  // "AVX-512 VNNI"

  // One row of `cols` (a multiple of 32) to blocks and poison.
  void (*quantize_row)(Activations kind, const float* x, int64_t cols, std::byte* blocks, float* poison);
  // h = (clamp(up, -limit, limit) + up_offset) * g * sigmoid(alpha * g), g = min(gate, limit), over one block of 32, or two that
  // share a scale (paired), whose gates and ups lie `apart` floats from each other; quantised as quantize_row does, except that a
  // block that is not finite makes *poison NaN and never clears it.
  void (*glu_blocks)(Activations kind, const float* gate, const float* up, int64_t apart, int64_t num_blocks,
                     const GluNumbers& glu, std::byte* blocks, float* poison);
  // The same without quantising: h [count], a multiple of 16, for experts whose down matrix is of a float type.
  void (*glu)(const float* gate, const float* up, int64_t count, const GluNumbers& glu, float* h);
  void (*panel_product)(const PanelProduct& product);
  // out[i][j] = w[j] . x[i] + bias[j]; w [num_outputs][cols] f32 row-major, cols a multiple of 32; bias may be null.
  void (*float_product)(const float* w, const float* bias, int64_t num_outputs, int64_t cols, const float* x, int64_t x_stride,
                        int64_t num_rows, float* out, int64_t out_stride);
  void (*rms_norm_row)(const float* x, const float* weight, int64_t cols, double epsilon, float* out);  // any cols
  void (*attention)(const AttentionTask& task);
  float (*log_sum_exp)(const float* x, int64_t count);  // log(sum(exp(x))), count >= 1
  void (*delta)(const DeltaTask& task);
  // Whether products of this many rows with weights of a type go faster when PanelProduct::groups are there; null: none do. The
  // bits are the same.
  bool (*takes_groups)(DType weights, int64_t num_rows) = nullptr;
  bool pairs_blocks = false;  // products with MXFP4 take Activations::kPaired

  Activations activations_for(DType weights) const {
    return pairs_blocks && weights == DType::kMXFP4 ? Activations::kPaired : ActivationsFor(weights);
  }
};

// The products of the formats that readers_of_formats.h composes, null for other types and where the build has none.
ProductFunction FormatProductAvx2(DType type);
ProductFunction FormatProductAvx512(DType type);
ProductFunction FormatProductNeon(DType type);
ProductFunction FormatProductDotprod(DType type);
ProductFunction FormatProductI8mm(DType type);

// Null where the build has no such table (another processor family). Whether the machine has it: cpu_features.h.
const CpuKernels* PortableKernels();
const CpuKernels* Avx2Kernels();
const CpuKernels* Avx512Kernels();
const CpuKernels* AmxKernels();
const CpuKernels* NeonKernels();
const CpuKernels* DotprodKernels();
const CpuKernels* I8mmKernels();

// Whether a product of tiles gives what it should; null where the build has none. For amx_permission.h.
using AmxTrial = bool (*)();
AmxTrial AmxTrialOfBuild();

}  // namespace ferry
