#pragma once

// The operations a stage needs. A stage (worker/stage.h) is written once over this interface; a backend is one
// implementation: reference (plain loops in double), cpu, cuda.
//
// Rules that hold for every backend and every operation:
//  - A row's result depends on that row's inputs alone, bit for bit: not on how many rows the call has, where the row stands
//    among them, or how a prompt was cut into chunks. (CUDA: holds for the same sequence of calls; see kernels/cuda/README.md.)
//  - Pointers are device memory of this backend unless the name says host. Buffers of a call must not overlap unless said.
//  - Compute operations are queued in order and may return before they are done. Errors of arguments are returned at once as
//    InvalidArgument naming the argument; errors of the device may surface at a later call or Wait, as Internal.
//  - No rows: OK, nothing is touched.
//  - One thread at a time.

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

// Rows of numbers in device memory, row-major; `stride` elements from row to row. Types: F32, BF16, F16.
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

// A moment in a queue. Copies share it; a default one has passed already.
class EventState {
 public:
  virtual ~EventState() = default;
};
using Event = std::shared_ptr<EventState>;

// A piece of work of one of the two queues, and when the device did it, in this host's time.
struct TimelineSpan {
  enum class Queue : uint8_t { kCompute, kCopy };
  const char* name = "";  // static: of the operation, or kWaitSpan
  Queue queue = Queue::kCompute;
  absl::Time begin, end;
};
inline constexpr char kWaitSpan[] = "wait";  // compute stood still for the event of a ComputeAfter

struct DeviceMemoryInfo {
  int64_t free_bytes = 0, total_bytes = 0;
};

// ------------------------------------------------------------------------------------------------------- batch and KV cache

// Block KV cache. Keys and values of one layer: [block][kv_head][token of the block][head_dim]; Q8_0: int8 codes in that
// order, then f16 scales [block][kv_head][token][head_dim / 32]. Position p of a sequence is in block
// table[(p / kKvBlockTokens) % table size], token p % kKvBlockTokens: a table shorter than the sequence is a ring, which is
// how a sliding layer holds its window and no more.
inline constexpr int64_t kKvBlockTokens = 32;

struct KvLayer {
  std::byte* keys = nullptr;  // KvPlaneBytes(...) of its type each
  std::byte* values = nullptr;
  DType key_type = DType::kF16;    // F16 or Q8_0; the reference backend also takes F32
  DType value_type = DType::kF16;  // likewise; CUDA: the keys' type
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0, head_dim = 0;
  bool ring = false;  // use Sequence::ring_blocks
};
int64_t KvPlaneBytes(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim);

// Rows of one sequence that go through the model together: positions [first_position, first_position + num_rows).
struct BatchSequence {
  int64_t first_row = 0;  // among the rows of the batch
  int64_t num_rows = 0;
  int64_t first_position = 0;
  std::vector<int32_t> blocks;       // full layers: at least ceil(end position / kKvBlockTokens)
  std::vector<int32_t> ring_blocks;  // sliding layers
};

struct Batch {
  std::vector<int32_t> token_ids;        // one a row; empty where the stage has no embedding
  std::vector<BatchSequence> sequences;  // rows in order, without gaps
  int64_t num_rows() const { return sequences.empty() ? 0 : sequences.back().first_row + sequences.back().num_rows; }
};

// A batch with its device-side copies, made by PrepareBatch.
class DeviceBatch {
 public:
  virtual ~DeviceBatch() = default;
  const Batch& host() const { return host_; }

 protected:
  explicit DeviceBatch(Batch host) : host_(std::move(host)) {}
  const Batch host_;
};

// ---------------------------------------------------------------------------------------------------------------- experts

// Assignments (token, rank) grouped by expert: entries [offsets[e], offsets[e+1]) are the rows of expert e, in order of row.
struct ExpertGroups {
  int64_t num_groups = 0;
  int64_t num_entries = 0;
  const int32_t* offsets = nullptr;  // [num_groups + 1]
  const int32_t* rows = nullptr;     // [num_entries] row of the input
  const int32_t* outs = nullptr;     // [num_entries] row of the contributions
};

// One expert to compute: its record in device memory, its group, and how many rows the group has (known on the host).
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
  int32_t top_n = 0;    // best logits wanted; >= vocabulary: all of them, in order of id
  int32_t target = -1;  // a token whose logit is wanted; -1: none
};
struct LogitsResult {
  float log_sum_exp = 0;
  float target_logit = 0;
  std::vector<int32_t> ids;   // best first, ties to the lower id; empty when all logits are given
  std::vector<float> logits;  // of `ids`, or of the whole vocabulary
};

// --------------------------------------------------------------------------------------------------------------- operations

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string name() const = 0;          // "cpu (AVX-512 VNNI, 2 threads)", "cuda:0 (NVIDIA H100)"
  virtual DType activation_dtype() const = 0;    // of the inputs of products: F32 on hosts, BF16 (F16 on sm_75) on CUDA
  virtual DType contribution_dtype() const = 0;  // of an expert's output rows

  // Memory and queues.
  virtual absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) = 0;  // 256-byte aligned; ResourceExhausted names the sizes
  virtual absl::StatusOr<DeviceMemoryInfo> MemoryInfo() = 0;
  virtual absl::Status Upload(void* dst, std::span<const std::byte> host_src) = 0;    // queued; host_src is free on return
  virtual absl::Status Download(std::span<std::byte> host_dst, const void* src) = 0;  // waits for the compute queue
  // The same, queued behind compute and not waited for: the host's bytes are the queue's until a MarkCompute after it has passed.
  // At the link's rate in memory of PinHost, of which both ends of the bytes are in one region; slower elsewhere.
  virtual absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src) = 0;
  virtual absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src) = 0;
  // Host memory that CopyAsync reads: pinned where the backend can. Regions must not overlap; a copy stays inside one.
  virtual absl::Status PinHost(std::span<const std::byte> region, bool read_only) = 0;
  virtual void UnpinHost(std::span<const std::byte> region) = 0;
  // Host to device on the copy queue, after the events of `after` (compute that still reads dst). The event passes when it is
  // done.
  virtual absl::StatusOr<Event> CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) = 0;
  virtual absl::StatusOr<Event> MarkCompute() = 0;            // passes when the compute queued so far is done
  virtual absl::Status ComputeAfter(const Event& event) = 0;  // compute queued from now on runs after it
  virtual bool Passed(const Event& event) = 0;
  virtual absl::Status Wait(const Event& event, absl::Time deadline) = 0;  // DeadlineExceeded
  virtual absl::Status Synchronize(absl::Time deadline) = 0;               // everything queued

  // From here until TakeTimeline all that is queued leaves a span. On CUDA it costs about 3 us an operation and waits for the
  // compute queue once, until `deadline`: DeadlineExceeded.
  virtual absl::Status StartTimeline(absl::Time deadline) = 0;
  // Ends it: the spans that are over, each queue's in order. One that is not is left to the next call.
  virtual absl::StatusOr<std::vector<TimelineSpan>> TakeTimeline() = 0;

  // Rows of the model. x is the residual stream [rows, n_embd] F32; "act" is a tensor of activation_dtype().
  virtual absl::StatusOr<std::unique_ptr<DeviceBatch>> PrepareBatch(Batch batch) = 0;  // InvalidArgument: tables, rows
  // x = rows of `table` [vocab, n_embd] for batch rows [first_row, first_row + x.rows).
  virtual absl::Status Embed(const DeviceBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) = 0;
  // out = x / sqrt(mean(x^2) + epsilon) * weight, weight F32 [cols]; out: act or F32.
  virtual absl::Status RmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) = 0;
  // out = in W^T + bias (F32 [rows of W], may be null), in: act; out: act or F32. accumulate: out += (F32 only).
  virtual absl::Status MatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) = 0;
  // Whether this backend can keep such a cache, whatever its planes: InvalidArgument or Unimplemented names what it cannot.
  virtual absl::Status CheckKvCache(const KvLayer& cache) const = 0;
  // qkv [rows, q | k | v] F32 or act, batch rows from first_row: rotates q into q_out (act), rotates k, stores k and v.
  virtual absl::Status RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, Tensor qkv,
                                    const KvLayer& cache, Tensor q_out) = 0;
  // Causal attention of the rows over the cache: query head h reads kv head h / (heads / kv_heads); scores times
  // 1/sqrt(head_dim); window > 0: a row at p sees positions > p - window; sinks F32 [heads] join the softmax's
  // denominator (null: none). The rows' own keys are in the cache. q, out: act [rows, heads * head_dim].
  virtual absl::Status Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache, int64_t window,
                                 const float* sinks, Tensor out) = 0;

  // Router: logits = in W^T + bias in F32 (W [num_experts, n_embd] row-major F32); the top_k best, ties to the lower id;
  // weights = softmax over the chosen. in: act. experts [rows, top_k] best first, weights [rows, top_k].
  virtual absl::Status Route(Tensor in, const float* weight, const float* bias, int64_t num_experts, int64_t top_k,
                             int32_t* experts, float* weights) = 0;
  // Groups rows * top_k assignments by expert: entry rows = token, outs = token * top_k + rank. offsets [num_experts + 1].
  virtual absl::Status GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                     int32_t* entry_rows, int32_t* entry_outs) = 0;
  // For each use and each entry of its group: contributions[outs] = down(swiglu(gate(in[rows]), up(in[rows]))), with biases.
  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit), h = (u + 1) * g * sigmoid(alpha * g). in: act.
  virtual absl::Status ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                 const SwigluParams& swiglu, Tensor in, Tensor contributions) = 0;
  // contributions[outs[i]] = host_rows[i] (F32 [n, cols] in host memory, free on return), outs in host memory.
  virtual absl::Status ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                            Tensor contributions) = 0;
  // The same, read where they lie when that is memory of PinHost: until a MarkCompute after it has passed, host_rows are the
  // queue's.
  virtual absl::Status ScatterContributionsAsync(std::span<const float> host_rows, std::span<const int32_t> outs,
                                                 Tensor contributions) {
    return ScatterContributions(host_rows, outs, contributions);
  }
  // x[t] += sum over rank r, in order, of weights[t, r] * contributions[t * top_k + r].
  virtual absl::Status Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) = 0;

  virtual absl::Status GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) = 0;  // out[i] = in[rows[i]]
  // Reads off logits [rows, vocab] F32; waits. One request a row.
  virtual absl::StatusOr<std::vector<LogitsResult>> ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) = 0;
};

// -------------------------------------------------------------------------------------------------------------- construction

struct BackendOptions {
  std::string kind = "auto";  // auto: cuda where there is a GPU and a build for it, else cpu; cpu, cuda, reference
  int device = 0;             // cuda: which GPU
  int num_threads = 0;        // cpu: 0 = physical cores
  bool pin_threads = true;
  std::string isa = "auto";  // cpu: auto, avx512, avx2, portable
};
// InvalidArgument: unknown kind or isa; FailedPrecondition: the machine or the build lacks it, and what would be right.
absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const BackendOptions& options);
// The same for `cpu` and `reference` alone: a program that calls only this one carries no GPU code.
absl::StatusOr<std::unique_ptr<Ops>> CreateHostOps(const BackendOptions& options);
// GPUs a cuda backend could run on; 0 without a driver or a CUDA build.
int NumCudaDevices();
// Memory of GPU `device` in bytes, used or not; 0: there is none. Makes no context, so it costs none of it.
int64_t CudaDeviceBytes(int device);

}  // namespace ferry
