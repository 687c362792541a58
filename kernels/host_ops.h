#pragma once

// What backends on the host share: "device memory" is the process's own, compute runs in the calling thread (and the pool
// that a subclass brings) and is done when the call returns, copies run beside it on a thread of their own. Every operation
// checks its arguments here; a subclass computes, in Do..., with arguments that are right and at least one row.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "kernels/host_timeline.h"
#include "kernels/ops.h"

namespace ferry {

// A batch with the sequence and the position of every row beside it.
class HostBatch final : public DeviceBatch {
 public:
  explicit HostBatch(Batch batch);

  int64_t num_rows() const { return static_cast<int64_t>(positions_.size()); }
  const BatchSequence& sequence(int64_t row) const { return host_.sequences[sequences_[row]]; }
  int64_t position(int64_t row) const { return positions_[row]; }
  // The block table of a row's sequence that `cache` uses.
  const std::vector<int32_t>& table(int64_t row, const KvLayer& cache) const {
    return cache.ring ? sequence(row).ring_blocks : sequence(row).blocks;
  }

 private:
  std::vector<int32_t> sequences_;  // of each row
  std::vector<int64_t> positions_;  // of each row
};

class HostOps : public Ops {
 public:
  HostOps();
  ~HostOps() override;  // waits for copies that are queued

  DType activation_dtype() const override { return DType::kF32; }
  DType contribution_dtype() const override { return DType::kF32; }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) final;
  void Populate(const DeviceBuffer& memory) final;
  absl::StatusOr<DeviceMemoryInfo> MemoryInfo() final;
  absl::Status Upload(void* dst, std::span<const std::byte> host_src) final;
  absl::Status Download(std::span<std::byte> host_dst, const void* src) final;
  absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src) final { return Upload(dst, host_src); }
  absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src) final { return Download(host_dst, src); }
  absl::Status UploadAllAsync(std::span<const HostCopy> copies) final;
  absl::Status DownloadAllAsync(std::span<const HostCopy> copies) final;
  // Regions are remembered and CopyAsync is held to them, though nothing needs pinning, so that a mistake that only CUDA
  // would punish is found here. Memory outside all of them may be copied from as well.
  absl::Status PinHost(std::span<const std::byte> region, bool read_only) final;
  void UnpinHost(std::span<const std::byte> region) final;
  absl::StatusOr<const std::byte*> AddressOfHost(std::span<const std::byte> host) final { return host.data(); }
  absl::StatusOr<Event> CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) final;
  absl::StatusOr<Event> MarkCompute() final;
  absl::Status ComputeAfter(const Event& event) final;
  bool Passed(const Event& event) final;
  absl::Status Wait(const Event& event, Deadline deadline) final;
  absl::Status Synchronize(Deadline deadline) final;
  absl::Status StartTimeline(Deadline deadline) final;
  absl::StatusOr<std::vector<TimelineSpan>> TakeTimeline() final;

  absl::StatusOr<std::unique_ptr<DeviceBatch>> PrepareBatch(Batch batch) final;
  absl::Status Embed(const DeviceBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) final;
  absl::Status RmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) final;
  absl::Status MatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) final;
  absl::Status CheckWeights(DType dtype) const final;
  absl::Status CheckExperts(const ExpertLayout& layout) const final;
  absl::Status CheckKvCache(const KvLayer& cache) const final;
  absl::Status CheckModel(const ModelConfig& model) const override;
  absl::Status RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                            Tensor qkv, const KvLayer& cache, Tensor q_out) final;
  absl::Status Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                         const AttentionParams& params, Tensor out) final;
  absl::Status StoreLatent(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                           Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) final;
  absl::Status MatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) final;
  absl::Status GatedDelta(const DeviceBatch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                          const DeltaWeights& weights, const DeltaStates& states, Tensor out) final;
  absl::Status MultiplyBySigmoid(Tensor gate, Tensor x) final;
  absl::Status Glu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) final;
  absl::Status Route(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts, float* weights) final;
  // InvalidArgument also: an expert id is out of range.
  absl::Status GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                             int32_t* entry_rows, int32_t* entry_outs) final;
  // InvalidArgument also: the groups are not in order, or name a row that is not there.
  absl::Status ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                         const GluParams& glu, Tensor in, Tensor contributions) final;
  absl::Status ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs, Tensor contributions) final;
  absl::Status ScatterComputedAsync(std::span<const std::byte> host_rows, std::span<const int32_t> outs,
                                    Tensor contributions) final;
  absl::Status Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) final;
  absl::Status GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) final;
  absl::Status DownloadRows(Tensor in, std::span<const int32_t> host_rows, std::span<float> host_out) final;
  absl::StatusOr<std::vector<LogitsResult>> ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) final;

 protected:
  // All tensors are F32, shapes agree, rows >= 1, rows lie inside the batch, ids and tables inside their memory.
  virtual absl::Status DoEmbed(const HostBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x);
  virtual absl::Status DoRmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) = 0;
  virtual absl::Status DoMatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) = 0;
  virtual absl::Status DoRopeAndStore(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                                      Tensor qkv, const KvLayer& cache, Tensor q_out) = 0;
  virtual absl::Status DoAttention(const HostBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                                   const AttentionParams& params, Tensor out) = 0;
  virtual absl::Status DoStoreLatent(const HostBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                                     Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) = 0;
  virtual absl::Status DoMatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out);
  virtual absl::Status DoGatedDelta(const HostBatch& batch, int64_t first_row, const AttentionConfig& net,
                                    const DeltaInputs& inputs, const DeltaWeights& weights, const DeltaStates& states,
                                    Tensor out) = 0;
  virtual absl::Status DoMultiplyBySigmoid(Tensor gate, Tensor x) = 0;
  virtual absl::Status DoGlu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) = 0;
  virtual absl::Status DoRoute(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                               float* weights) = 0;
  virtual absl::Status DoExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                   const GluParams& glu, Tensor in, Tensor contributions) = 0;
  virtual absl::Status DoCombine(Tensor contributions, const float* weights, int64_t top_k, Tensor x);
  // log(sum(exp(row))) of `count` logits.
  virtual float DoLogSumExp(const float* row, int64_t count);

  // The KV cache in F32 besides F16 and Q8_0.
  virtual bool StoresKvInF32() const { return false; }
  // Calls body(i) for every i in [0, count), in any order and on any thread; a subclass with a pool spreads them.
  virtual void ForEach(int64_t count, const std::function<void(int64_t)>& body);

 private:
  struct Copies;  // the queue and its thread
  HostTimeline timeline_;
  std::unique_ptr<Copies> copies_;
  std::vector<std::span<const std::byte>> pinned_;
};

// Rows of a tensor on the host.
inline float* RowOf(const Tensor& tensor, int64_t row) { return static_cast<float*>(tensor.data) + row * tensor.stride; }

}  // namespace ferry
