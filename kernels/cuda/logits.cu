#include "kernels/cuda/device_code.cuh"
#include "kernels/cuda/logits.h"

namespace ferry::cuda {
namespace {

constexpr int kSegment = 8192;  // logits of a block, kept in shared memory while they are searched: 32 KiB
constexpr int kThreads = 512;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kMergeThreads = 1024;

struct SegmentSum {
  float largest;
  float total;  // sum of exp(logit - largest)
};

// The n-th largest of `count` different keys, 1 <= n <= count: digit by digit from the top, counting keys in the bucket
// that holds it, until the bucket is taken whole. `key_of(i)` gives key i, 0 for none. Same in every thread; ends with
// a barrier.
template <typename KeyOf>
__device__ uint64_t NthLargestKey(int count, int n, const KeyOf& key_of, int32_t* histogram, int32_t* found) {
  uint64_t prefix = 0;
  int shift = 64;
  while (true) {
    shift -= kDigitBits;
    for (int i = threadIdx.x; i < kDigits; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const uint64_t key = key_of(i);
      const bool same = shift == 64 - kDigitBits || key >> (shift + kDigitBits) == prefix;
      if (same) atomicAdd(&histogram[static_cast<int>(key >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) {
      // Buckets from the top: lane l has eight of them; find the one in which the running count reaches n.
      constexpr int kPerLane = kDigits / kWarpSize;
      int own = 0;
      for (int j = 0; j < kPerLane; ++j) own += histogram[kDigits - 1 - (threadIdx.x * kPerLane + j)];
      const int upto = WarpInclusiveScan(own);
      if (upto >= n && upto - own < n) {
        int above = upto - own;
        for (int j = 0; j < kPerLane; ++j) {
          const int digit = kDigits - 1 - (threadIdx.x * kPerLane + j);
          if (above + histogram[digit] >= n) {
            found[0] = digit;
            found[1] = n - above;         // wanted of this bucket
            found[2] = histogram[digit];  // in it
            break;
          }
          above += histogram[digit];
        }
      }
    }
    __syncthreads();
    prefix = prefix << kDigitBits | static_cast<uint64_t>(found[0]);
    n = found[1];
    if (n == found[2] || shift == 0) break;
    __syncthreads();  // found is read before the next round writes it
  }
  __syncthreads();
  return prefix << shift;  // every key at or above it is among the n largest
}

// Sorts `count` keys of shared memory, largest first; `padded`: the next power of two, room for so many.
__device__ void SortKeys(uint64_t* keys, int count, int padded) {
  for (int i = count + threadIdx.x; i < padded; i += blockDim.x) keys[i] = 0;
  for (int size = 2; size <= padded; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < padded / 2; i += blockDim.x) {
        const int a = i / stride * 2 * stride + i % stride, b = a + stride;
        const uint64_t x = keys[a], y = keys[b];
        if ((x < y) == ((a & size) == 0)) keys[a] = y, keys[b] = x;
      }
    }
  }
  __syncthreads();
}

// Largest logit and sum of a segment, and its max_top best keys (unsorted) where the row wants any.
// Grid: [requests * segments]. Block: kThreads. keys [request][segment][max_top].
// Bound: the logits' bytes, once through device memory.
__global__ void __launch_bounds__(kThreads)
    SegmentKernel(const float* logits, int64_t stride, int cols, int segments, const RowRequest* requests, int max_top,
                  SegmentSum* sums, uint64_t* keys) {
  __shared__ float values[kSegment];
  __shared__ float largest_of[kWarpSize], total_of[kWarpSize];
  __shared__ int32_t histogram[kDigits], found[3], next;
  const int64_t request = blockIdx.x / segments;
  const int segment = blockIdx.x % segments, first = segment * kSegment, count = min(kSegment, cols - first);
  const RowRequest wanted = requests[request];
  const float* const row = logits + wanted.row * stride + first;

  float largest = -INFINITY;
  bool has_nan = false;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float value = row[i];
    values[i] = value;
    largest = fmaxf(largest, value);
    has_nan |= isnan(value);
  }
  largest = BlockMax(largest, largest_of);
  const float base = largest == -INFINITY ? 0.0f : largest;
  float total = has_nan ? NAN : 0.0f;
  for (int i = threadIdx.x; i < count; i += kThreads) total += expf(values[i] - base);
  total = BlockSum(total, total_of);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = {largest, total};
    next = 0;
  }
  const int n = min(wanted.top_n, count);
  uint64_t* const out = keys + static_cast<int64_t>(blockIdx.x) * max_top;
  const auto key_of = [&](int i) { return OrderedKey(values[i], static_cast<uint32_t>(first + i)); };
  if (n > 0) {
    const uint64_t least = NthLargestKey(count, n, key_of, histogram, found);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t key = key_of(i);
      if (key >= least) out[atomicAdd(&next, 1)] = key;
    }
  }
  for (int i = n + threadIdx.x; i < max_top; i += kThreads) out[i] = 0;
}

// Joins the segments of a row in a fixed order, and sorts the best of their best.
// Grid: [requests]. Block: kMergeThreads.
// Bound: segments * max_top * 8 bytes through L2, a few times.
__global__ void __launch_bounds__(kMergeThreads)
    MergeKernel(const float* logits, int64_t stride, int segments, const RowRequest* requests, int max_top,
                const SegmentSum* sums, const uint64_t* keys, RowSummary* summaries, RankedLogit* best) {
  __shared__ uint64_t sorted[kMaxTopLogits];
  __shared__ int32_t histogram[kDigits], found[3], next;
  const int64_t request = blockIdx.x;
  const RowRequest wanted = requests[request];
  const float* const row = logits + wanted.row * stride;
  if (threadIdx.x == 0) next = 0;
  if (threadIdx.x < kWarpSize) {
    const SegmentSum* const own = sums + request * segments;
    float largest = -INFINITY, total = 0.0f;
    for (int s = threadIdx.x; s < segments; s += kWarpSize) largest = fmaxf(largest, own[s].largest);
    largest = WarpMax(largest);
    for (int s = threadIdx.x; s < segments; s += kWarpSize) {
      if (own[s].total != 0.0f) total += own[s].total * expf(own[s].largest - largest);  // a segment of -inf adds nothing
    }
    total = WarpSum(total);
    if (threadIdx.x == 0) {
      summaries[request] = {largest + logf(total), wanted.target >= 0 ? row[wanted.target] : 0.0f};
    }
  }
  if (wanted.top_n <= 0) return;
  const uint64_t* const candidates = keys + request * segments * max_top;
  const auto key_of = [&](int i) { return candidates[i]; };
  const uint64_t least = NthLargestKey(segments * max_top, wanted.top_n, key_of, histogram, found);
  for (int i = threadIdx.x; i < segments * max_top; i += kMergeThreads) {
    const uint64_t key = candidates[i];
    if (key >= least && key != 0) sorted[atomicAdd(&next, 1)] = key;
  }
  __syncthreads();
  int padded = 1;
  while (padded < wanted.top_n) padded *= 2;
  SortKeys(sorted, wanted.top_n, padded);
  for (int i = threadIdx.x; i < wanted.top_n; i += kMergeThreads) {
    const int32_t id = static_cast<int32_t>(IdOfKey(sorted[i]));
    best[request * max_top + i] = {id, row[id]};
  }
}

int64_t KeyBytes(int64_t num_requests, int64_t cols, int64_t max_top) {
  return num_requests * CeilDiv(cols, kSegment) * max_top * static_cast<int64_t>(sizeof(uint64_t));
}

}  // namespace

int64_t SummarizeWorkspaceBytes(int64_t num_requests, int64_t cols, int64_t max_top) {
  return KeyBytes(num_requests, cols, max_top) +
         num_requests * CeilDiv(cols, kSegment) * static_cast<int64_t>(sizeof(SegmentSum));
}

cudaError_t LaunchSummarize(const SummarizeArgs& args, cudaStream_t stream) {
  if (args.num_requests == 0) return cudaSuccess;
  const int64_t cols = args.logits.cols, segments = CeilDiv(cols, kSegment);
  if (cols < 1 || cols > 1 << 28 || args.max_top < 0 || args.max_top > kMaxTopLogits || args.max_top > cols) {
    return cudaErrorInvalidValue;
  }
  auto* const keys = static_cast<uint64_t*>(args.workspace);
  auto* const sums =
      reinterpret_cast<SegmentSum*>(static_cast<std::byte*>(args.workspace) + KeyBytes(args.num_requests, cols, args.max_top));
  const float* const logits = static_cast<const float*>(args.logits.data);
  dim3 grid;
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.num_requests * segments, 1, 1, &grid));
  SegmentKernel<<<grid, kThreads, 0, stream>>>(logits, args.logits.stride, static_cast<int>(cols), static_cast<int>(segments),
                                               args.requests, static_cast<int>(args.max_top), sums, keys);
  FERRY_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  FERRY_CUDA_RETURN_IF_ERROR(Grid(args.num_requests, 1, 1, &grid));
  MergeKernel<<<grid, kMergeThreads, 0, stream>>>(logits, args.logits.stride, static_cast<int>(segments), args.requests,
                                                  static_cast<int>(args.max_top), sums, keys, args.summaries, args.best);
  return cudaGetLastError();
}

}  // namespace ferry::cuda
