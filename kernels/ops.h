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
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/model/tiled_layout.h"
#include "common/status.h"
#include "kernels/device_memory.h"
#include "kernels/expert_groups.h"
#include "kernels/gated_delta.h"
#include "kernels/head_matrices.h"
#include "kernels/kv_batch.h"
#include "kernels/logits_request.h"

namespace ferry {

// One of many copies between host and device.
struct HostCopy {
  std::span<std::byte> host;
  std::byte* device = nullptr;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string name() const = 0;          // "cpu (AVX-512 VNNI, 2 threads)", "cuda:0 (NVIDIA H100)"
  virtual DType activation_dtype() const = 0;    // type of the inputs of products: F32 on hosts, BF16 (F16 on sm_75) on CUDA
  virtual DType contribution_dtype() const = 0;  // type of an expert's output rows

  // Memory and queues.
  virtual absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) = 0;  // 256-byte aligned; ResourceExhausted names the sizes
  // Gets the pages of allocated memory that is going to be written whole, where a system gives them only when they are written.
  virtual void Populate(const DeviceBuffer& /*memory*/) {}
  virtual absl::StatusOr<DeviceMemoryInfo> MemoryInfo() = 0;
  virtual absl::Status Upload(void* dst, std::span<const std::byte> host_src) = 0;    // queued; host_src is reusable on return
  virtual absl::Status Download(std::span<std::byte> host_dst, const void* src) = 0;  // waits for the compute queue
  // Queues the same copy behind the compute queued so far and returns. The caller leaves the host's bytes alone until a
  // MarkCompute queued after this call has passed. Runs at link speed when all the host's bytes lie in one region given to
  // PinHost; otherwise slower.
  virtual absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src) = 0;
  virtual absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src) = 0;
  // The same for many copies, which read and write memory apart from each other. Small ones are at link speed together where each
  // alone would not be.
  virtual absl::Status UploadAllAsync(std::span<const HostCopy> copies) = 0;
  virtual absl::Status DownloadAllAsync(std::span<const HostCopy> copies) = 0;
  // Registers host memory that copies read or write, page-locked where the backend can. Regions do not overlap, and a copy stays
  // inside one.
  virtual absl::Status PinHost(std::span<const std::byte> region, bool read_only) = 0;
  virtual void UnpinHost(std::span<const std::byte> region) = 0;
  // The address at which kernels of this device read `host`, which lies in one region given to PinHost or in memory that the
  // device shares with the host; valid until UnpinHost. FailedPrecondition: the device cannot read it.
  virtual absl::StatusOr<const std::byte*> AddressOfHost(std::span<const std::byte> host) = 0;
  // Copies host to device on the copy queue, after the events of `after` (compute that still reads dst). The returned event
  // passes when the copy is done.
  virtual absl::StatusOr<Event> CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) = 0;
  virtual absl::StatusOr<Event> MarkCompute() = 0;            // the event passes when the compute queued so far is done
  virtual absl::Status ComputeAfter(const Event& event) = 0;  // compute queued from now on runs after the event
  virtual bool Passed(const Event& event) = 0;
  virtual absl::Status Wait(const Event& event, Deadline deadline) = 0;  // DeadlineExceeded
  virtual absl::Status Synchronize(Deadline deadline) = 0;               // everything queued

  // Records a span for every operation and copy queued from here until TakeTimeline. On CUDA this costs about 3 us an operation,
  // and the call waits for the compute queue once: DeadlineExceeded when that takes past `deadline`.
  virtual absl::Status StartTimeline(Deadline deadline) = 0;
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
  // Whether this backend multiplies (and looks up rows of) weights of that type, and computes such experts. Unimplemented names
  // what it does not take.
  virtual absl::Status CheckWeights(DType dtype) const = 0;
  virtual absl::Status CheckExperts(const ExpertLayout& layout) const = 0;
  // Whether this backend supports a cache of such types and sizes; ignores the plane pointers. InvalidArgument or Unimplemented
  // names the property that it does not support.
  virtual absl::Status CheckKvCache(const KvLayer& cache) const = 0;
  // Whether this backend can compute `model`, whatever its weights' types. Unimplemented names the part that it cannot compute.
  virtual absl::Status CheckModel(const ModelConfig& model) const = 0;
  // qkv [rows, q | k | v], F32 or act, holds batch rows from first_row on. Applies the head norms, if any, to each head of q and
  // k, rotates q into q_out (act), rotates k, and stores k and v in the cache.
  virtual absl::Status RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                                    Tensor qkv, const KvLayer& cache, Tensor q_out) = 0;
  // Causal attention of the rows over the cache, which already holds the rows' own keys. Query head h reads kv head
  // h / (heads / kv_heads). q: act [rows, heads * head_dim]; out: act [rows, heads * head_dim], of a latent cache
  // [rows, heads * latent_values].
  virtual absl::Status Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                                 const AttentionParams& params, Tensor out) = 0;
  // Latent attention. latent: F32 [rows, kv_rank | rotated]. Applies the norm to the first part and the rotation to the second,
  // and stores both as one key. q: act [rows, heads * (nope | rotated)]; its rotated parts go to the ends of the heads of q_out,
  // act [rows, heads * (kv_rank | rotated)]. The other columns of q_out stay.
  virtual absl::Status StoreLatent(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                                   Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) = 0;
  // For each head h: out_h = in_h W_h^T. in and out are act; each divides its columns evenly among the heads. Reads and writes
  // the first columns of each part, as many as W_h has columns and rows. The others stay.
  virtual absl::Status MatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) = 0;
  // The gated delta net of kernels/gated_delta.h. Advances the state of each row's sequence, which is that of its slot; a
  // sequence begins at position 0 with zeros. out: act [rows, heads * head_dim].
  virtual absl::Status GatedDelta(const DeviceBatch& batch, int64_t first_row, const AttentionConfig& net,
                                  const DeltaInputs& inputs, const DeltaWeights& weights, const DeltaStates& states,
                                  Tensor out) = 0;
  // x *= sigmoid(gate). gate: F32, an element of x each, or one column, a row of x each. x: act.
  virtual absl::Status MultiplyBySigmoid(Tensor gate, Tensor x) = 0;
  // out = glu(gate, up), element by element. gate, up: F32 of one shape; out: act.
  virtual absl::Status Glu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) = 0;

  // The router. logits = in W^T + bias in F32; in: act. scores = softmax over all experts, or the sigmoid of each logit.
  //   experts [rows, top_k]  the largest of scores + selection bias, best first, ties to the lower id. With groups (runs of
  //                          neighbouring experts) of the groups_used best groups alone; a group's worth is the sum of its
  //                          group_best largest
  //   weights [rows, top_k]  the scores of the experts without the selection bias, divided by their sum with `normalise`, times
  //                          weight_scale
  virtual absl::Status Route(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                             float* weights) = 0;
  // Groups the rows * top_k assignments by expert, in the form of ExpertGroups: an entry's row is its token, its out is
  // token * top_k + rank. offsets has num_experts + 1 elements.
  virtual absl::Status GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                     int32_t* entry_rows, int32_t* entry_outs) = 0;
  // For each use and each entry of its group: contributions[outs] = down(glu(gate(in[rows]), up(in[rows]))), with biases. in:
  // act.
  virtual absl::Status ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                 const GluParams& glu, Tensor in, Tensor contributions) = 0;
  // contributions[outs[i]] = host_rows[i]. host_rows F32 [n, cols] and outs [n] are host memory, reusable on return.
  virtual absl::Status ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                            Tensor contributions) = 0;
  // The same without a copy of host_rows when they lie in memory given to PinHost: the caller leaves host_rows alone until a
  // MarkCompute queued after this call has passed.
  virtual absl::Status ScatterContributionsAsync(std::span<const float> host_rows, std::span<const int32_t> outs,
                                                 Tensor contributions) {
    return ScatterContributions(host_rows, outs, contributions);
  }
  // The same for rows that another device of this kind computed: host_rows [n, cols] are of contribution_dtype(), and their bits
  // stay.
  virtual absl::Status ScatterComputedAsync(std::span<const std::byte> host_rows, std::span<const int32_t> outs,
                                            Tensor contributions) = 0;
  // x[t] += sum over rank r, in order, of weights[t, r] * contributions[t * top_k + r].
  virtual absl::Status Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) = 0;

  virtual absl::Status GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) = 0;  // out[i] = in[rows[i]]
  // host_out[i] = in[rows[i]] as F32, in host memory [host_rows.size(), in.cols]. Waits for the compute queue. The device writes
  // host_out itself when all of it lies in one region given to PinHost, and may do so after an error until UnpinHost.
  virtual absl::Status DownloadRows(Tensor in, std::span<const int32_t> host_rows, std::span<float> host_out) = 0;
  // Answers one request a row from logits [rows, vocab] F32. Waits for the compute queue.
  virtual absl::StatusOr<std::vector<LogitsResult>> ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) = 0;
};

// -------------------------------------------------------------------------------------------------------------- construction

struct BackendOptions {
  // cpu, cuda, reference, or auto: cuda if the build has it and the machine a GPU, else cpu. reference-bf16, for tests: the
  // reference with the roundings of cuda.
  std::string kind = "auto";
  int device = 0;       // cuda: which GPU
  int num_threads = 0;  // cpu: 0 = as many as physical cores
  bool pin_threads = true;
  std::string isa = "auto";  // cpu: auto or a name of kernels/cpu/isa.h
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
