#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/overlapping_launch.cuh"
#include "kernels/cuda/routing.h"

namespace ferry::cuda {
namespace {

// Every dot product is cut into so many parts, whatever the rows: a single row then spreads over enough blocks. Partial
// sums are [part][row][expert].
constexpr int kParts = 8;
constexpr int64_t kRowsAtOnce = 4096;  // bounds the workspace: 16 MiB for 128 experts
constexpr int kStep = 32;              // columns in shared memory at a time

// Columns of one part: whole steps.
__host__ __device__ constexpr int64_t PartCols(int64_t cols) { return (cols + kStep * kParts - 1) / (kStep * kParts) * kStep; }

// An F32 number as the sum of three BF16 numbers, exact but for what lies under 2^-24 of it (and under BF16's
// smallest): with inputs in BF16, three products on tensor cores are one in F32.
struct Split {
  __nv_bfloat16 high, middle, low;
};
__device__ inline Split SplitOf(float value) {
  Split out;
  out.high = __float2bfloat16_rn(value);
  const float rest = value - __bfloat162float(out.high);
  out.middle = __float2bfloat16_rn(rest);
  out.low = __float2bfloat16_rn(rest - __bfloat162float(out.middle));
  return out;
}
__device__ inline uint32_t PackBf16(__nv_bfloat16 low, __nv_bfloat16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) | static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
}

constexpr int kManyRows = 128;     // of a block: 32 a warp, in four groups of warps
constexpr int kStepRowBytes = 80;  // of a row of 32 BF16 numbers in shared memory: eight rows start in different banks

// Adds the products of one step: 32 rows, two tiles of 16, by 32 experts, four tiles of 8. The bases are shared addresses of
// this lane's first operands.
template <int kExperts>
__device__ __forceinline__ void MultiplyStep(uint32_t a_base, uint32_t b_base, float (&sums)[2][4][4]) {
#pragma unroll
  for (int k = 0; k < kStep / 16; ++k) {
    uint32_t rows_a[2][4];
    LoadMatrix4(rows_a[0], a_base + k * 32);
    LoadMatrix4(rows_a[1], a_base + k * 32 + 16 * kStepRowBytes);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t weights[4];
        LoadMatrix4(weights, b_base + part * kExperts * kStepRowBytes + pair * 16 * kStepRowBytes + k * 32);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          MmaBf16(sums[r][2 * pair], rows_a[r], weights[0], weights[1]);
          MmaBf16(sums[r][2 * pair + 1], rows_a[r], weights[2], weights[3]);
        }
      }
    }
  }
}

// Writes four columns of a line of split weights at byte `at` of the three parts: low, middle, high.
template <int kBytes>
__device__ __forceinline__ void StoreSplit(const float (&weights)[4], int at, unsigned char (&parts)[3][kBytes]) {
  Split split[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) split[i] = SplitOf(weights[i]);
  *reinterpret_cast<uint2*>(parts[0] + at) = uint2{PackBf16(split[0].low, split[1].low), PackBf16(split[2].low, split[3].low)};
  *reinterpret_cast<uint2*>(parts[1] + at) =
      uint2{PackBf16(split[0].middle, split[1].middle), PackBf16(split[2].middle, split[3].middle)};
  *reinterpret_cast<uint2*>(parts[2] + at) =
      uint2{PackBf16(split[0].high, split[1].high), PackBf16(split[2].high, split[3].high)};
}

// Writes the sums of a warp, 32 rows by 32 experts, to partials [rows][num_experts].
__device__ __forceinline__ void StoreSums(const float (&sums)[2][4][4], float* partials, int64_t first_row, int64_t rows,
                                          int first_expert, int num_experts) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row + r * 16 + i / 2 * 8 + lane / 4;
        const int expert = first_expert + t * 8 + lane % 4 * 2 + i % 2;
        if (row < rows && expert < num_experts) partials[row * num_experts + expert] = sums[r][t][i];
      }
    }
  }
}

// One part of the products of 128 rows and 32 * kExpertWarps experts. Each sum takes its columns 16 at a time in
// order, of each 16 first the low parts of the weights, then the middle, then the high: RouterFewKernel does the
// same, so the bits of a row do not depend on which of the two it goes through. The next step's numbers are on their
// way during a step.
// Grid: [ceil(rows / 128), ceil(num_experts / (32 * kExpertWarps)), kParts]. Block: 4 * kExpertWarps warps.
// Bound: 3 * 2 * rows * num_experts * cols flops by mma; the inputs' bytes.
template <int kExpertWarps>
__global__ void __launch_bounds__(128 * kExpertWarps)
    RouterKernel(const __nv_bfloat16* in, int64_t in_stride, bool in_aligned, const float* weight, bool weight_aligned,
                 float* partials, int64_t rows, int num_experts, int cols) {
  constexpr int kThreads = 128 * kExpertWarps, kExperts = 32 * kExpertWarps;
  constexpr int kInLoads = kManyRows * (kStep / 4) / kThreads, kWeightLoads = kExperts * (kStep / 4) / kThreads;
  __shared__ __align__(16) unsigned char a[kManyRows * kStepRowBytes], b[3][kExperts * kStepRowBytes];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kManyRows;
  const int first_expert = blockIdx.y * kExperts, part_cols = static_cast<int>(PartCols(cols));
  const int first_col = blockIdx.z * part_cols, end_col = min(first_col + part_cols, cols);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, row_warp = warp % 4, expert_warp = warp / 4;

  const int line = threadIdx.x / (kStep / 4),
            c = threadIdx.x % (kStep / 4) * 4;  // four columns of every kThreads / 8-th line
  float next_in[kInLoads][4], next_weight[kWeightLoads][4];
  const auto load = [&](int col) {
#pragma unroll
    for (int l = 0; l < kInLoads; ++l) {
      const int64_t row = first_row + l * (kThreads / 8) + line;
      Load4(in + row * in_stride + col + c, row < rows ? end_col - col - c : 0, in_aligned, next_in[l]);
    }
#pragma unroll
    for (int l = 0; l < kWeightLoads; ++l) {
      const int64_t expert = first_expert + l * (kThreads / 8) + line;
      Load4(weight + expert * cols + col + c, expert < num_experts ? end_col - col - c : 0, weight_aligned, next_weight[l]);
    }
  };
  const auto store = [&] {
#pragma unroll
    for (int l = 0; l < kInLoads; ++l) {
      const float(&v)[4] = next_in[l];
      uint2 pairs;
      pairs.x = PackBf16(__float2bfloat16_rn(v[0]), __float2bfloat16_rn(v[1]));  // exact: they were BF16
      pairs.y = PackBf16(__float2bfloat16_rn(v[2]), __float2bfloat16_rn(v[3]));
      *reinterpret_cast<uint2*>(a + (l * (kThreads / 8) + line) * kStepRowBytes + c * 2) = pairs;
    }
#pragma unroll
    for (int l = 0; l < kWeightLoads; ++l) {
      StoreSplit(next_weight[l], (l * (kThreads / 8) + line) * kStepRowBytes + c * 2, b);
    }
  };

  float sums[2][4][4] = {};  // two tiles of 16 rows, four of 8 experts
  const uint32_t a_base = SharedAddress(a) + (row_warp * 32 + lane % 16) * kStepRowBytes + lane / 16 * 16;
  const uint32_t b_base = SharedAddress(b) + (expert_warp * 32 + lane / 16 * 8 + lane % 8) * kStepRowBytes + lane / 8 % 2 * 16;
  if (first_col < end_col) load(first_col);
  for (int col = first_col; col < end_col; col += kStep) {
    store();
    __syncthreads();
    if (col + kStep < end_col) load(col + kStep);
    MultiplyStep<kExperts>(a_base, b_base, sums);
    __syncthreads();
  }
  StoreSums(sums, partials + blockIdx.z * rows * num_experts, first_row + row_warp * 32, rows, first_expert + expert_warp * 32,
            num_experts);
}

constexpr int kMaxFewRows = 64;  // calls with more rows go through RouterKernel
constexpr int kFewWarps = 4;     // of a block, eight experts each

// The same for few rows: a warp has 16 rows and 8 experts and reads its operands straight into registers, those of
// kBatch products before the first of them. kAligned: pairs of columns may be read at once.
// Grid: [ceil(rows / 16), ceil(num_experts / 32), kParts]. Block: kFewWarps warps.
// Bound: the weight's bytes.
template <bool kAligned>
__global__ void __launch_bounds__(kFewWarps* kWarpSize)
    RouterFewKernel(const __nv_bfloat16* in, int64_t in_stride, const float* weight, float* partials, int64_t rows,
                    int num_experts, int cols) {
  constexpr int kBatch = 12;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 16 + lane / 4;  // and the eighth after it
  const int first_expert = (blockIdx.y * kFewWarps + warp) * 8, expert = first_expert + lane / 4;
  const int part_cols = static_cast<int>(PartCols(cols)), first_col = blockIdx.z * part_cols;
  const int end_col = min(first_col + part_cols, cols);
  const float* const weights = weight + static_cast<int64_t>(expert) * cols;
  const auto pair_of = [&](int64_t of_row, int col) {
    const __nv_bfloat16* const source = in + of_row * in_stride + col;
    if (of_row >= rows || col >= end_col) return 0u;
    if constexpr (kAligned) return *reinterpret_cast<const uint32_t*>(source);
    return PackBf16(source[0], col + 1 < end_col ? source[1] : __ushort_as_bfloat16(0));
  };
  const auto weights_of = [&](int col) {
    if (expert >= num_experts || col >= end_col) return float2{0.0f, 0.0f};
    if constexpr (kAligned) return *reinterpret_cast<const float2*>(weights + col);
    return float2{weights[col], col + 1 < end_col ? weights[col + 1] : 0.0f};
  };
  float2 w[kBatch][2];
  const auto load_weights = [&](int first) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      w[k][0] = weights_of(first + k * 16 + lane % 4 * 2);
      w[k][1] = weights_of(first + k * 16 + lane % 4 * 2 + 8);
    }
  };
  load_weights(first_col);  // on their way while the rows come to be
  AwaitLaunchesBefore();
  float sums[4] = {};
  for (int first = first_col; first < end_col; first += 16 * kBatch) {
    uint32_t a[kBatch][4];
    if (first > first_col) load_weights(first);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int col = first + k * 16 + lane % 4 * 2;
      a[k][0] = pair_of(row, col);
      a[k][1] = pair_of(row + 8, col);
      a[k][2] = pair_of(row, col + 8);
      a[k][3] = pair_of(row + 8, col + 8);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const Split s[4] = {SplitOf(w[k][0].x), SplitOf(w[k][0].y), SplitOf(w[k][1].x), SplitOf(w[k][1].y)};
      MmaBf16(sums, a[k], PackBf16(s[0].low, s[1].low), PackBf16(s[2].low, s[3].low));
      MmaBf16(sums, a[k], PackBf16(s[0].middle, s[1].middle), PackBf16(s[2].middle, s[3].middle));
      MmaBf16(sums, a[k], PackBf16(s[0].high, s[1].high), PackBf16(s[2].high, s[3].high));
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t of_row = row + i / 2 * 8;
    const int of_expert = first_expert + lane % 4 * 2 + i % 2;
    if (of_row < rows && of_expert < num_experts) partials[(blockIdx.z * rows + of_row) * num_experts + of_expert] = sums[i];
  }
}

constexpr int kF16Rows = 16, kF16Experts = 8;  // of a block, one dot product a thread
constexpr int kF16Cols = 384;                  // columns in shared memory at a time

// For F16 inputs (capability 7.5, without bf16 products): plain F32, every sum over the part's columns in order.
// Grid: [ceil(rows / 16), ceil(num_experts / 8), kParts]. Block: 128 threads.
// Bound: 2 * rows * num_experts * cols flops in F32; shared memory allows a quarter of that rate.
__global__ void __launch_bounds__(kF16Rows* kF16Experts)
    RouterF16Kernel(const __half* in, int64_t in_stride, bool in_aligned, const float* weight, bool weight_aligned,
                    float* partials, int64_t rows, int num_experts, int cols) {
  // Rows of both start four banks after each other.
  __shared__ __align__(16) float a[kF16Rows][kF16Cols + 4], b[kF16Experts][kF16Cols + 4];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kF16Rows;
  const int here = static_cast<int>(rows - first_row < kF16Rows ? rows - first_row : kF16Rows);
  const int first_expert = blockIdx.y * kF16Experts, part_cols = static_cast<int>(PartCols(cols));
  const int first_col = blockIdx.z * part_cols, end_col = min(first_col + part_cols, cols);
  const int row = threadIdx.x / kF16Experts, expert = threadIdx.x % kF16Experts;
  float sum = 0.0f;
  for (int col = first_col; col < end_col; col += kF16Cols) {
    const int fours = (min(kF16Cols, end_col - col) + 3) / 4;
    for (int i = threadIdx.x; i < (kF16Experts + here) * fours; i += kF16Rows * kF16Experts) {
      const int line = i / fours, c = i % fours * 4;
      float v[4];
      if (line < kF16Experts) {
        const int count = first_expert + line < num_experts ? end_col - col - c : 0;
        Load4(weight + static_cast<int64_t>(first_expert + line) * cols + col + c, count, weight_aligned, v);
        *reinterpret_cast<float4*>(&b[line][c]) = float4{v[0], v[1], v[2], v[3]};
      } else {
        Load4(in + (first_row + line - kF16Experts) * in_stride + col + c, end_col - col - c, in_aligned, v);
        *reinterpret_cast<float4*>(&a[line - kF16Experts][c]) = float4{v[0], v[1], v[2], v[3]};
      }
    }
    __syncthreads();
    if (row < here) {
#pragma unroll 4
      for (int k = 0; k < 4 * fours; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(&a[row][k]), w = *reinterpret_cast<const float4*>(&b[expert][k]);
        sum = fmaf(x.x, w.x, sum);
        sum = fmaf(x.y, w.y, sum);
        sum = fmaf(x.z, w.z, sum);
        sum = fmaf(x.w, w.w, sum);
      }
    }
    __syncthreads();
  }
  if (row < here && first_expert + expert < num_experts) {
    partials[(blockIdx.z * rows + first_row + row) * num_experts + first_expert + expert] = sum;
  }
}

constexpr int kRowsPerChoice = 4;  // warps of a block, one row each
static_assert(kMaxExperts <= 32 * kWarpSize, "a lane keeps up to 32 logits of a row in registers");

__device__ inline uint64_t WarpMaxKey(uint64_t key) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, offset);
    key = other > key ? other : key;
  }
  return key;
}

// Takes the best key of the warp's row: the lane that holds it clears it, and all lanes get its value.
template <int kSlots>
__device__ __forceinline__ float TakeBest(uint64_t (&keys)[kSlots], const float (&values)[kSlots], int* expert) {
  uint64_t top = 0;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) top = keys[s] > top ? keys[s] : top;
  top = WarpMaxKey(top);
  float value = 0.0f;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    if (keys[s] == top) {
      value = values[s];
      keys[s] = 0;
    }
  }
  *expert = static_cast<int>(IdOfKey(top));
  return __shfl_sync(0xffffffffu, value, *expert % kWarpSize);
}

// Adds the parts in order.
__device__ __forceinline__ float LogitOf(const float* partials, const float* bias, int64_t rows, int num_experts, int64_t row,
                                         int expert) {
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < kParts; ++part) sum += partials[(part * rows + row) * num_experts + expert];
  return bias != nullptr ? sum + bias[expert] : sum;
}

// Adds the parts in order, then picks the best logit top_k times. A key holds value and id, so ties go to the lower
// id and every pick is a valid id; the lane that held the pick clears it. The softmax runs over the picks in their
// order.
// Grid: [ceil(rows / kRowsPerChoice)]. Block: kRowsPerChoice warps. kSlots: logits of a lane.
// Bound: rows * num_experts * kParts * 4 bytes through L2.
template <int kSlots>
__global__ void ChooseKernel(const float* partials, const float* bias, int32_t* experts, float* weights, int64_t rows,
                             int num_experts, int top_k) {
  AwaitLaunchesBefore();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerChoice + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (row >= rows) return;
  uint64_t keys[kSlots];
  float logits[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int expert = s * kWarpSize + lane;
    keys[s] = 0;
    logits[s] = 0.0f;
    if (expert >= num_experts) continue;
    logits[s] = LogitOf(partials, bias, rows, num_experts, row, expert);
    keys[s] = OrderedKey(logits[s], static_cast<uint32_t>(expert));
  }
  float best = 0.0f, total = 0.0f;
  for (int rank = 0; rank < top_k; ++rank) {
    int expert;
    const float logit = TakeBest(keys, logits, &expert);
    if (rank == 0) best = logit;
    const float weight = expf(logit - best);
    total += weight;
    if (lane == 0) {
      experts[row * top_k + rank] = expert;
      weights[row * top_k + rank] = weight;
    }
  }
  __syncwarp();
  for (int rank = lane; rank < top_k; rank += kWarpSize) weights[row * top_k + rank] /= total;
}

// The groups that a row's experts come from, a bit a group. `choice` is in shared memory; a lane takes a group.
__device__ inline uint32_t GroupsInUse(const float* choice, int num_experts, const RouteArgs& args, int lane) {
  if (args.groups_used == args.num_groups) return 0xffffffffu;
  const int size = num_experts / args.num_groups;
  uint64_t key = 0;
  if (lane < args.num_groups) {
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; ++i) {
      const float value = choice[lane * size + i];
      if (value > best) {
        second = best;
        best = value;
      } else if (value > second) {
        second = value;
      }
    }
    key = OrderedKey(args.group_best == 2 && size > 1 ? best + second : best, static_cast<uint32_t>(lane));
  }
  uint32_t used = 0;
  for (int i = 0; i < args.groups_used; ++i) {
    const uint64_t top = WarpMaxKey(key);
    if (key == top) key = 0;
    used |= 1u << IdOfKey(top);
  }
  return used;
}

// The same as ChooseKernel for the routers that RouteArgs describes. Ties and NaN as there.
// Grid: [ceil(rows / kRowsPerChoice)]. Block: kRowsPerChoice warps. kSlots: scores of a lane.
// Bound: rows * num_experts * kParts * 4 bytes through L2.
template <int kSlots>
__global__ void ChooseScoredKernel(const float* partials, RouteArgs args, int32_t* experts, float* weights, int64_t rows,
                                   int num_experts, int top_k) {
  __shared__ float choices[kRowsPerChoice * kMaxExperts];
  AwaitLaunchesBefore();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerChoice + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (row >= rows) return;
  float* const choice = choices + threadIdx.x / kWarpSize * num_experts;
  float scores[kSlots], largest = -INFINITY;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int expert = s * kWarpSize + lane;
    scores[s] = -INFINITY;
    if (expert >= num_experts) continue;
    scores[s] = LogitOf(partials, args.bias, rows, num_experts, row, expert);
    largest = fmaxf(largest, scores[s]);
  }
  largest = WarpMax(largest);
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    scores[s] = args.sigmoid ? 1.0f / (1.0f + expf(-scores[s])) : expf(scores[s] - largest);
    if (s * kWarpSize + lane < num_experts) total += scores[s];
  }
  total = WarpSum(total);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int expert = s * kWarpSize + lane;
    if (!args.sigmoid) scores[s] /= total;
    if (expert < num_experts)
      choice[expert] = args.selection_bias != nullptr ? scores[s] + args.selection_bias[expert] : scores[s];
  }
  __syncwarp();
  const uint32_t used = GroupsInUse(choice, num_experts, args, lane);
  const int group_size = num_experts / args.num_groups;
  uint64_t keys[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int expert = s * kWarpSize + lane;
    const bool usable = expert < num_experts && (args.num_groups == 1 || used >> (expert / group_size) & 1);
    keys[s] = usable ? OrderedKey(choice[expert], static_cast<uint32_t>(expert)) : 0;
  }
  float sum = 0.0f;
  for (int rank = 0; rank < top_k; ++rank) {
    int expert;
    const float score = TakeBest(keys, scores, &expert);
    sum += score;
    if (lane == 0) {
      experts[row * top_k + rank] = expert;
      weights[row * top_k + rank] = score;
    }
  }
  __syncwarp();
  const float factor = args.normalise ? args.weight_scale / sum : args.weight_scale;
  for (int rank = lane; rank < top_k; rank += kWarpSize) weights[row * top_k + rank] *= factor;
}

// Partial sums of rows [first, first + rows).
cudaError_t LaunchRouter(const RouteArgs& args, int64_t first, int64_t rows, cudaStream_t stream) {
  const int num_experts = static_cast<int>(args.num_experts), cols = static_cast<int>(args.in.cols);
  const bool weight_aligned = RowsAligned4<float>(args.weight, cols);
  float* const partials = static_cast<float*>(args.workspace);
  dim3 grid;
  if (args.in.dtype == DType::kF16) {
    const auto* const in = static_cast<const __half*>(args.in.data) + first * args.in.stride;
    FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, kF16Rows), CeilDiv(num_experts, kF16Experts), kParts, &grid));
    RouterF16Kernel<<<grid, kF16Rows * kF16Experts, 0, stream>>>(in, args.in.stride, RowsAligned4<__half>(in, args.in.stride),
                                                                 args.weight, weight_aligned, partials, rows, num_experts, cols);
    return cudaGetLastError();
  }
  if (args.in.dtype != DType::kBF16) return cudaErrorInvalidValue;
  const auto* const in = static_cast<const __nv_bfloat16*>(args.in.data) + first * args.in.stride;
  const bool in_aligned = RowsAligned4<__nv_bfloat16>(in, args.in.stride);
  if (rows <= kMaxFewRows) {
    FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, 16), CeilDiv(num_experts, 8 * kFewWarps), kParts, &grid));
    const auto kernel = in_aligned && weight_aligned ? RouterFewKernel<true> : RouterFewKernel<false>;
    return LaunchOverlapping(kernel, grid, kFewWarps * kWarpSize, stream, in, args.in.stride, args.weight, partials, rows,
                             num_experts, cols);
  }
  const int expert_warps = num_experts <= 32 ? 1 : 2;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, kManyRows), CeilDiv(num_experts, 32 * expert_warps), kParts, &grid));
  const auto kernel = expert_warps == 1 ? RouterKernel<1> : RouterKernel<2>;
  kernel<<<grid, 128 * expert_warps, 0, stream>>>(in, args.in.stride, in_aligned, args.weight, weight_aligned, partials, rows,
                                                  num_experts, cols);
  return cudaGetLastError();
}

// The choice from those sums. kSlots: logits of a lane.
template <int kSlots>
cudaError_t LaunchChoice(const RouteArgs& args, int64_t first, int64_t rows, cudaStream_t stream) {
  const int num_experts = static_cast<int>(args.num_experts), top_k = static_cast<int>(args.top_k);
  const float* const partials = static_cast<const float*>(args.workspace);
  int32_t* const experts = args.experts + first * top_k;
  float* const weights = args.weights + first * top_k;
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(CeilDiv(rows, kRowsPerChoice), 1, 1, &grid));
  if (args.scored) {
    return LaunchOverlapping(ChooseScoredKernel<kSlots>, grid, kRowsPerChoice * kWarpSize, stream, partials, args, experts,
                             weights, rows, num_experts, top_k);
  }
  return LaunchOverlapping(ChooseKernel<kSlots>, grid, kRowsPerChoice * kWarpSize, stream, partials, args.bias, experts, weights,
                           rows, num_experts, top_k);
}

}  // namespace

int64_t RouteWorkspaceBytes(int64_t rows, int64_t num_experts) {
  return kParts * (rows < kRowsAtOnce ? rows : kRowsAtOnce) * num_experts * 4;
}

cudaError_t LaunchRoute(const RouteArgs& args, cudaStream_t stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts || args.top_k < 1 || args.top_k > args.num_experts ||
      args.in.cols > 1 << 24 || args.num_groups < 1 || args.num_groups > kMaxGroups || args.num_experts % args.num_groups != 0 ||
      args.groups_used < 1 || args.groups_used > args.num_groups ||
      args.top_k > args.groups_used * (args.num_experts / args.num_groups)) {
    return cudaErrorInvalidValue;
  }
  for (int64_t first = 0; first < args.in.rows; first += kRowsAtOnce) {
    const int64_t rows = args.in.rows - first < kRowsAtOnce ? args.in.rows - first : kRowsAtOnce;
    FERRY_CUDA_RETURN_IF_ERROR(LaunchRouter(args, first, rows, stream));
    const auto launch_choice = args.num_experts <= 32    ? LaunchChoice<1>
                               : args.num_experts <= 128 ? LaunchChoice<4>
                               : args.num_experts <= 512 ? LaunchChoice<16>
                                                         : LaunchChoice<32>;
    FERRY_CUDA_RETURN_IF_ERROR(launch_choice(args, first, rows, stream));
  }
  return cudaSuccess;
}

}  // namespace ferry::cuda
