#pragma once

// The operations a stage needs. A stage (worker/stage.h) is written once over this interface; a backend is one
// implementation: reference (plain loops in double), cpu, cuda.
//
// Rules that hold for every backend and every operation:
//  - A row's result depends on that row's inputs alone, bit for bit: not on the number of rows in the call, the row's place
//    among them, or how a prompt was cut into chunks. (CUDA: holds for the same sequence of calls; see kernels/cuda/README.md.)
//  - Pointers are device memory of this backend unless the name says host. Buffers of a call do not overlap unless its comment
//    allows it.
//  - Compute operations are queued in order and may return before the device has done them. A wrong argument is returned at
//    once as InvalidArgument that names it; a device error may surface at a later call or Wait, as Internal.
//  - A call with no rows returns OK and touches nothing.
//  - One thread at a time calls an Ops.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/model/tiled_layout.h"
#include "common/status.h"

namespace ferry {

// ---------------------------------------------------------------------------------------------------------------- memory

// Device memory with one owner; freed on destruction.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::byte* data, int64_t bytes, std::function<void(std::byte*)> free)
      : data_(data), bytes_(bytes), free_(std::move(free)) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(free_, other.free_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr && free_) free_(data_);
  }
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  std::function<void(std::byte*)> free_;
};

// Rows of numbers in device memory, row-major: row r begins at element r * stride. Types: F32, BF16, F16.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0, stride = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride = 0)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride == 0 ? cols : stride) {}
  int64_t element_bytes() const { return dtype == DType::kF32 ? 4 : 2; }
  Tensor Rows(int64_t first, int64_t count) const {
    return {static_cast<std::byte*>(data) + first * stride * element_bytes(), dtype, count, cols, stride};
  }
  Tensor Cols(int64_t first, int64_t count) const {
    return {static_cast<std::byte*>(data) + first * element_bytes(), dtype, rows, count, stride};
  }
};

// A moment in a queue. Copies of an Event share it; a default-constructed Event has passed.
class EventState {
 public:
  virtual ~EventState() = default;
};
using Event = std::shared_ptr<EventState>;

// One piece of work of a queue and the time at which the device did it, on this host's clock.
struct TimelineSpan {
  enum class Queue : uint8_t { kCompute, kCopy };
  const char* name = "";  // a string literal: the operation's name, or kWaitSpan
  Queue queue = Queue::kCompute;
  absl::Time begin, end;
};
inline constexpr char kWaitSpan[] = "wait";  // the compute queue waited for the event of a ComputeAfter

struct DeviceMemoryInfo {
  int64_t free_bytes = 0, total_bytes = 0;
};

// ------------------------------------------------------------------------------------------------------- batch and KV cache

// The block KV cache of one layer. Its keys, and likewise its values, are [block][kv_head][token of the block][head_dim]; a
// Q8_0 plane has int8 codes in that order, then f16 scales [block][kv_head][token][head_dim / 32]. Position p of a sequence is
// token p % kKvBlockTokens of block table[(p / kKvBlockTokens) % table size]. A table shorter than the sequence is therefore a
// ring; a sliding layer uses one to hold its window and nothing else.
inline constexpr int64_t kKvBlockTokens = 32;

struct KvLayer {
  std::byte* keys = nullptr;       // KvPlaneBytes(key_type, ...)
  std::byte* values = nullptr;     // KvPlaneBytes(value_type, ...)
  DType key_type = DType::kF16;    // F16 or Q8_0; the reference backend also takes F32
  DType value_type = DType::kF16;  // likewise; CUDA wants the keys' type
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0, head_dim = 0;
  bool ring = false;  // the block table is BatchSequence::ring_blocks
};
int64_t KvPlaneBytes(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim);

// The rows of one sequence in a batch, at positions [first_position, first_position + num_rows).
struct BatchSequence {
  int64_t first_row = 0;  // in the batch
  int64_t num_rows = 0;
  int64_t first_position = 0;
  std::vector<int32_t> blocks;       // block table of full layers: at least ceil(end position / kKvBlockTokens) blocks
  std::vector<int32_t> ring_blocks;  // block table of sliding layers
};

struct Batch {
  std::vector<int32_t> token_ids;        // one a row; empty when the stage has no embedding
  std::vector<BatchSequence> sequences;  // in order of rows, without gaps
  int64_t num_rows() const { return sequences.empty() ? 0 : sequences.back().first_row + sequences.back().num_rows; }
};

// A batch and the copies of it in device memory, made by PrepareBatch.
class DeviceBatch {
 public:
  virtual ~DeviceBatch() = default;
  const Batch& host() const { return host_; }

 protected:
  explicit DeviceBatch(Batch host) : host_(std::move(host)) {}
  const Batch host_;
};

// ---------------------------------------------------------------------------------------------------------------- experts

// The assignments (token, rank) of a layer grouped by expert: entries [offsets[e], offsets[e+1]) belong to expert e, in order of
// row. Pointers are device memory.
struct ExpertGroups {
  int64_t num_groups = 0;
  int64_t num_entries = 0;
  const int32_t* offsets = nullptr;  // [num_groups + 1]
  const int32_t* rows = nullptr;     // [num_entries] which row of the input
  const int32_t* outs = nullptr;     // [num_entries] which row of the contributions
};

// One expert to compute: its record in device memory, its group in ExpertGroups, and the group's number of rows.
struct ExpertUse {
  const std::byte* record = nullptr;
  int32_t group = 0;
  int64_t num_rows = 0;
};

struct SwigluParams {
  float alpha = 1.702f;
  float limit = 7.0f;
};

struct LogitsRequest {
  int32_t top_n = 0;    // how many of the best logits to return; >= vocabulary: all of them, in order of id
  int32_t target = -1;  // a token whose logit is returned as well; -1: none
};
struct LogitsResult {
  float log_sum_exp = 0;
  float target_logit = 0;
  std::vector<int32_t> ids;   // best first, ties to the lower id; empty when all logits are given
  std::vector<float> logits;  // one for each of `ids`, or for each token of the vocabulary
};

// --------------------------------------------------------------------------------------------------------------- operations

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string name() const = 0;          // "cpu (AVX-512 VNNI, 2 threads)", "cuda:0 (NVIDIA H100)"
  virtual DType activation_dtype() const = 0;    // type of the inputs of products: F32 on hosts, BF16 (F16 on sm_75) on CUDA
  virtual DType contribution_dtype() const = 0;  // type of an expert's output rows

  // Memory and queues.
  virtual absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) = 0;  // 256-byte aligned; ResourceExhausted names the sizes
  virtual absl::StatusOr<DeviceMemoryInfo> MemoryInfo() = 0;
  virtual absl::Status Upload(void* dst, std::span<const std::byte> host_src) = 0;    // queued; host_src is reusable on return
  virtual absl::Status Download(std::span<std::byte> host_dst, const void* src) = 0;  // waits for the compute queue
  // Queues the same copy behind the compute queued so far and returns. The caller leaves the host's bytes alone until a
  // MarkCompute queued after this call has passed. Runs at link speed when all the host's bytes lie in one region given to
  // PinHost; otherwise slower.
  virtual absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src) = 0;
  virtual absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src) = 0;
  // Registers host memory that copies read or write, page-locked where the backend can. Regions do not overlap, and a copy stays
  // inside one.
  virtual absl::Status PinHost(std::span<const std::byte> region, bool read_only) = 0;
  virtual void UnpinHost(std::span<const std::byte> region) = 0;
  // Copies host to device on the copy queue, after the events of `after` (compute that still reads dst). The returned event
  // passes when the copy is done.
  virtual absl::StatusOr<Event> CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) = 0;
  virtual absl::StatusOr<Event> MarkCompute() = 0;            // the event passes when the compute queued so far is done
  virtual absl::Status ComputeAfter(const Event& event) = 0;  // compute queued from now on runs after the event
  virtual bool Passed(const Event& event) = 0;
  virtual absl::Status Wait(const Event& event, absl::Time deadline) = 0;  // DeadlineExceeded
  virtual absl::Status Synchronize(absl::Time deadline) = 0;               // everything queued

  // Records a span for every operation and copy queued from here until TakeTimeline. On CUDA this costs about 3 us an operation,
  // and the call waits for the compute queue once: DeadlineExceeded when that takes past `deadline`.
  virtual absl::Status StartTimeline(absl::Time deadline) = 0;
  // Ends the recording and returns the finished spans, each queue's in order. The next call returns those unfinished now.
  virtual absl::StatusOr<std::vector<TimelineSpan>> TakeTimeline() = 0;

  // Operations on rows of the model. x is the residual stream [rows, n_embd] F32; "act" means a tensor of activation_dtype().
  virtual absl::StatusOr<std::unique_ptr<DeviceBatch>> PrepareBatch(Batch batch) = 0;  // InvalidArgument: tables, rows
  // x = rows of `table` [vocab, n_embd] for batch rows [first_row, first_row + x.rows).
  virtual absl::Status Embed(const DeviceBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) = 0;
  // out = x / sqrt(mean(x^2) + epsilon) * weight, weight F32 [cols]; out: act or F32.
  virtual absl::Status RmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) = 0;
  // out = in W^T + bias (F32 [rows of W], may be null), in: act; out: act or F32. accumulate: out += (F32 only).
  virtual absl::Status MatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) = 0;
  // Whether this backend supports a cache of such types and sizes; ignores the plane pointers. InvalidArgument or Unimplemented
  // names the property that it does not support.
  virtual absl::Status CheckKvCache(const KvLayer& cache) const = 0;
  // qkv [rows, q | k | v], F32 or act, holds batch rows from first_row on. Rotates q into q_out (act), rotates k, and stores k
  // and v in the cache.
  virtual absl::Status RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, Tensor qkv,
                                    const KvLayer& cache, Tensor q_out) = 0;
  // Causal attention of the rows over the cache, which already holds the rows' own keys. Query head h reads kv head
  // h / (heads / kv_heads); scores are scaled by 1/sqrt(head_dim). With window > 0 a row at position p sees positions
  // > p - window. sinks F32 [heads] join the softmax's denominator (null: none). q, out: act [rows, heads * head_dim].
  virtual absl::Status Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache, int64_t window,
                                 const float* sinks, Tensor out) = 0;

  // The router. logits = in W^T + bias in F32, with W [num_experts, n_embd] row-major F32 and in: act. experts [rows, top_k]
  // gets the top_k largest, best first, ties to the lower id; weights [rows, top_k] gets the softmax over these logits.
  virtual absl::Status Route(Tensor in, const float* weight, const float* bias, int64_t num_experts, int64_t top_k,
                             int32_t* experts, float* weights) = 0;
  // Groups the rows * top_k assignments by expert, in the form of ExpertGroups: an entry's row is its token, its out is
  // token * top_k + rank. offsets has num_experts + 1 elements.
  virtual absl::Status GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                     int32_t* entry_rows, int32_t* entry_outs) = 0;
  // For each use and each entry of its group: contributions[outs] = down(swiglu(gate(in[rows]), up(in[rows]))), with biases.
  // in: act. gpt-oss's swiglu: g = min(gate, limit), u = clamp(up, -limit, limit), h = (u + 1) * g * sigmoid(alpha * g).
  virtual absl::Status ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                 const SwigluParams& swiglu, Tensor in, Tensor contributions) = 0;
  // contributions[outs[i]] = host_rows[i]. host_rows F32 [n, cols] and outs [n] are host memory, reusable on return.
  virtual absl::Status ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                            Tensor contributions) = 0;
  // The same without a copy of host_rows when they lie in memory given to PinHost: the caller leaves host_rows alone until a
  // MarkCompute queued after this call has passed.
  virtual absl::Status ScatterContributionsAsync(std::span<const float> host_rows, std::span<const int32_t> outs,
                                                 Tensor contributions) {
    return ScatterContributions(host_rows, outs, contributions);
  }
  // x[t] += sum over rank r, in order, of weights[t, r] * contributions[t * top_k + r].
  virtual absl::Status Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) = 0;

  virtual absl::Status GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) = 0;  // out[i] = in[rows[i]]
  // Answers one request a row from logits [rows, vocab] F32. Waits for the compute queue.
  virtual absl::StatusOr<std::vector<LogitsResult>> ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) = 0;
};

// -------------------------------------------------------------------------------------------------------------- construction

struct BackendOptions {
  std::string kind = "auto";  // cpu, cuda, reference, or auto: cuda if the build has it and the machine a GPU, else cpu
  int device = 0;             // cuda: which GPU
  int num_threads = 0;        // cpu: 0 = as many as physical cores
  bool pin_threads = true;
  std::string isa = "auto";  // cpu: auto, avx512, avx2, portable
};
// InvalidArgument: unknown kind or isa. FailedPrecondition: the machine or the build lacks it; the message says which would work.
absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const BackendOptions& options);
// The same for `cpu` and `reference` only. A program that calls no other factory links no GPU code.
absl::StatusOr<std::unique_ptr<Ops>> CreateHostOps(const BackendOptions& options);
// The number of GPUs that a cuda backend could use; 0 without a driver or without CUDA in the build.
int NumCudaDevices();
// Total memory of GPU `device` in bytes; 0: no such GPU. Makes no CUDA context, so it uses none of that memory.
int64_t CudaDeviceBytes(int device);

}  // namespace ferry
