#include "kernels/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/deadline.h"
#include "kernels/checks.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/batch_attention.h"
#include "kernels/cuda/batch_delta.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/cuda/cuda_batch.h"
#include "kernels/cuda/cuda_devices.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/cuda_timeline.h"
#include "kernels/cuda/device_views.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/grouping.h"
#include "kernels/cuda/head_products.h"
#include "kernels/cuda/head_tables.h"
#include "kernels/cuda/host_transfers.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_store.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/logits_reader.h"
#include "kernels/cuda/peer_memory.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/rope_store.h"
#include "kernels/cuda/routing.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/supported_models.h"
#include "kernels/cuda/tiled_gemm.h"
#include "kernels/cuda/weight_types.h"
#include "kernels/rope.h"

namespace ferry {
namespace cuda {
namespace {

constexpr std::initializer_list<DType> kKvTypes = {DType::kF16, DType::kQ8_0};

// Text of a product's launcher as a Status.
absl::Status ProductStatus(const char* error, std::string_view what) {
  if (error == nullptr) return absl::OkStatus();
  if (std::string_view(error).substr(0, 8) == "argument") return InvalidArgument("%s: %s", what, error);
  cudaGetLastError();
  return Internal("%s: %s", what, error);
}

absl::Status CheckVectorRows(std::string_view name, const Tensor& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && tensor.stride % 8 == 0) return absl::OkStatus();
  return InvalidArgument("%s has a stride of %d at %p, want a multiple of 8 and an address aligned to 16 bytes", name,
                         tensor.stride, tensor.data);
}

absl::StatusOr<const CudaBatch*> CudaBatchOf(const DeviceBatch& batch) {
  const auto* cuda_batch = dynamic_cast<const CudaBatch*>(&batch);
  if (cuda_batch == nullptr) return InvalidArgument("batch was prepared by another backend");
  return cuda_batch;
}

absl::Status CheckEvent(std::string_view name, const Event& event) {
  if (event == nullptr || CudaEvent::Of(event) != nullptr) return absl::OkStatus();
  return InvalidArgument("%s is an event of another backend", name);
}

class CudaOps final : public Ops, public PeerMemories {
 public:
  static absl::StatusOr<std::unique_ptr<Ops>> Create(int device) {
    std::unique_ptr<CudaOps> ops(new CudaOps());
    cudaDeviceProp properties;
    RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, device), absl::StrFormat("GPU %d", device)));
    RETURN_IF_ERROR(CheckCudaGpu(absl::StrFormat("GPU %d (%s)", device, properties.name), properties.major, properties.minor));
    if (const char* error = QueryProductDevice(device, &ops->product_device_); error != nullptr) {
      return FailedPrecondition("GPU %d (%s, compute capability %d.%d): %s", device, properties.name, properties.major,
                                properties.minor, error);
    }
    ops->device_ = device;
    ops->name_ = absl::StrFormat("cuda:%d (%s)", device, properties.name);
    const bool has_bf16 = properties.major >= 8;
    ops->activation_dtype_ = has_bf16 ? DType::kBF16 : DType::kF16;
    ops->contribution_dtype_ = has_bf16 ? DType::kBF16 : DType::kF32;
    RETURN_IF_ERROR(ops->Use());
    ASSIGN_OR_RETURN(ops->compute_, ComputeQueue::Create(ops->name_, &ops->timeline_));
    ASSIGN_OR_RETURN(ops->copies_, CopyEngine::Create(device, ops->events_, &ops->timeline_));
    ASSIGN_OR_RETURN(ops->transfers_, HostTransfers::Create(&ops->compute_, ops->copies_.get()));
    ASSIGN_OR_RETURN(ops->workspace_, Workspace::Create(kWorkspaceBytes));
    return ops;
  }
  ~CudaOps() override {
    // Memory that kernels in flight use goes after them.
    if (compute_.get() != nullptr) cudaStreamSynchronize(compute_.get());
  }

  std::string name() const override { return name_; }
  DType activation_dtype() const override { return activation_dtype_; }
  DType contribution_dtype() const override { return contribution_dtype_; }

  // ------------------------------------------------------------------------------------------------- memory and queues

  absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    if (bytes < 0) return InvalidArgument("bytes is %d, want 0 or more", bytes);
    ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(bytes));
    auto owner = std::make_shared<DeviceMemory>(std::move(memory));
    return DeviceBuffer(owner->data(), bytes, [owner](std::byte*) mutable { owner.reset(); });
  }

  absl::StatusOr<DeviceMemoryInfo> MemoryInfo() override {
    RETURN_IF_ERROR(Use());
    size_t free_bytes = 0, total_bytes = 0;
    RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "MemoryInfo"));
    return DeviceMemoryInfo{static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes), copies_->shares_host_memory()};
  }

  absl::Status Upload(void* dst, std::span<const std::byte> host_src) override {
    RETURN_IF_ERROR(Use());
    return transfers_->Upload(dst, host_src);
  }
  absl::Status Download(std::span<std::byte> host_dst, const void* src) override {
    RETURN_IF_ERROR(Use());
    return transfers_->Download(host_dst, src);
  }
  absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src) override {
    RETURN_IF_ERROR(Use());
    return transfers_->UploadAsync(dst, host_src);
  }
  absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src) override {
    RETURN_IF_ERROR(Use());
    return transfers_->DownloadAsync(host_dst, src);
  }
  absl::Status UploadAllAsync(std::span<const HostCopy> copies) override {
    RETURN_IF_ERROR(Use());
    return transfers_->UploadAllAsync(copies);
  }
  absl::Status DownloadAllAsync(std::span<const HostCopy> copies) override {
    RETURN_IF_ERROR(Use());
    return transfers_->DownloadAllAsync(copies);
  }
  absl::Status PinHost(std::span<const std::byte> region, bool read_only) override {
    RETURN_IF_ERROR(Use());
    return copies_->Pin(region, read_only);
  }
  void UnpinHost(std::span<const std::byte> region) override {
    if (!Use().ok()) return;
    cudaStreamSynchronize(compute_.get());  // UploadAsync and DownloadAsync
    copies_->Unpin(region);
  }
  absl::StatusOr<const std::byte*> AddressOfHost(std::span<const std::byte> host) override {
    RETURN_IF_ERROR(Use());
    return copies_->AddressOf(host);
  }
  absl::StatusOr<std::unique_ptr<PeerMemory>> Share(int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    return cuda::SharePeerMemory(bytes, copies_.get(), compute_.get());
  }
  absl::StatusOr<std::unique_ptr<PeerMemory>> Map(const std::string& key, int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    return cuda::MapPeerMemory(key, bytes, copies_.get(), compute_.get());
  }
  absl::StatusOr<Event> CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) override {
    RETURN_IF_ERROR(Use());
    return copies_->Copy(dst, host_src, after);
  }
  absl::StatusOr<Event> MarkCompute() override {
    RETURN_IF_ERROR(Use());
    return CudaEvent::Record(events_, compute_.get());
  }
  absl::Status ComputeAfter(const Event& event) override {
    RETURN_IF_ERROR(Use());
    RETURN_IF_ERROR(CheckEvent("event", event));
    if (event == nullptr) return absl::OkStatus();
    const CudaTimeline::Scope span = SpanOf(kWaitSpan);
    return compute_.Seen("ComputeAfter", cudaStreamWaitEvent(compute_.get(), CudaEvent::Of(event)->get(), 0));
  }
  bool Passed(const Event& event) override {
    const CudaEvent* cuda_event = CudaEvent::Of(event);
    if (cuda_event == nullptr) return true;
    // A fault counts as passed, since a waiter would wait forever; the next call reports it.
    const cudaError_t error = cudaEventQuery(cuda_event->get());
    if (error == cudaErrorNotReady) cudaGetLastError();
    return error != cudaErrorNotReady;
  }
  absl::Status Wait(const Event& event, Deadline deadline) override {
    RETURN_IF_ERROR(Use());
    RETURN_IF_ERROR(CheckEvent("event", event));
    if (event == nullptr) return absl::OkStatus();
    return compute_.Await("Wait", deadline, [&] { return cudaEventQuery(CudaEvent::Of(event)->get()); });
  }
  absl::Status Synchronize(Deadline deadline) override {
    RETURN_IF_ERROR(Use());
    for (const cudaStream_t stream : {compute_.get(), copies_->stream()}) {
      RETURN_IF_ERROR(compute_.Await("Synchronize", deadline, [&] { return cudaStreamQuery(stream); }));
    }
    return absl::OkStatus();
  }

  absl::Status StartTimeline(Deadline deadline) override {
    RETURN_IF_ERROR(Use());
    return timeline_.Start(compute_.get(), deadline);
  }
  absl::StatusOr<std::vector<TimelineSpan>> TakeTimeline() override {
    RETURN_IF_ERROR(Use());
    return timeline_.Take();
  }

  // ------------------------------------------------------------------------------------------------------- operations

  absl::StatusOr<std::unique_ptr<DeviceBatch>> PrepareBatch(Batch batch) override {
    RETURN_IF_ERROR(Use());
    RETURN_IF_ERROR(CheckBatch(batch));
    auto out = std::make_unique<CudaBatch>(std::move(batch), batch_memory_);
    ASSIGN_OR_RETURN(DeviceMemory memory, batch_memory_->Take(static_cast<int64_t>(out->bytes().size())));
    RETURN_IF_ERROR(Upload(memory.data(), out->bytes()));
    out->SetMemory(std::move(memory));
    return std::unique_ptr<DeviceBatch>(std::move(out));
  }

  absl::Status Embed(const DeviceBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("Embed");
    ASSIGN_OR_RETURN(const CudaBatch* cuda_batch, CudaBatchOf(batch));
    RETURN_IF_ERROR(CheckEmbed(batch.host(), first_row, table, x));
    return Queued("Embed", LaunchEmbed(TilesOf(table), cuda_batch->token_ids(first_row), RowsOf(x), compute_.get()));
  }

  absl::Status RmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("RmsNorm");
    RETURN_IF_ERROR(CheckRmsNorm(x, weight, epsilon, out, activation_dtype_));
    return Queued("RmsNorm", LaunchRmsNorm(RowsOf(x), weight, static_cast<float>(epsilon), RowsOf(out), compute_.get()));
  }

  absl::Status MatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("MatMul");
    RETURN_IF_ERROR(CheckMatMul(in, weight, out, accumulate, activation_dtype_));
    if (in.rows == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(in, Padded(in, weight.layout.padded_cols()));
    TiledGemmArgs args;
    args.act = in.data;
    args.act_type = in.dtype;
    args.act_stride = in.stride;
    args.weight = weight.data;
    args.matrix = MatrixOf(weight.layout);
    args.m = in.rows;
    args.n = weight.layout.rows;
    args.k = in.cols;
    args.bias = bias;
    args.out = out.data;
    args.out_type = out.dtype;
    args.out_stride = out.stride;
    args.accumulate = accumulate;
    const int64_t expanded = DenseExpansionBytes(product_device_, in.dtype, in.rows, weight.layout.dtype, weight.layout.cols);
    if (expanded > 0) {
      args.expansion.bytes = std::max(expanded, kExpansionBytes);
      ASSIGN_OR_RETURN(args.expansion.data, workspace_.Reserve(args.expansion.bytes));
    }
    compute_.SetLast("MatMul");
    return ProductStatus(TiledGemm(product_device_, args, compute_.get()), "MatMul");
  }

  absl::Status CheckWeights(DType dtype) const override {
    if (WithFormat(dtype, []<DType>() {})) return absl::OkStatus();
    return Unimplemented("type %s; the CUDA backend computes with %s", NameOf(dtype), ComputableTypes());
  }

  absl::Status CheckExperts(const ExpertLayout& layout) const override {
    for (const TiledLayout* matrix : {&layout.gate, &layout.up, &layout.down}) RETURN_IF_ERROR(CheckWeights(matrix->dtype));
    return absl::OkStatus();
  }

  absl::Status CheckKvCache(const KvLayer& cache) const override {
    RETURN_IF_ERROR(CheckKvShape(cache, kKvTypes));
    // The kernels are compiled for each type of cache: a type each would double them for the least used case.
    if (cache.key_type != cache.value_type) {
      return Unimplemented("keys in %s with values in %s: on CUDA -ctk and -ctv must be the same", NameOf(cache.key_type),
                           NameOf(cache.value_type));
    }
    RETURN_IF_ERROR(Use());
    if (cache.latent_values > 0) {
      const char* const lacks = LatentAttentionLacks(cache.head_dim, cache.latent_values, cache.key_type);
      if (lacks == nullptr) return absl::OkStatus();
      return Unimplemented("a latent cache of %d numbers in %s, %d of them values; CUDA takes %s", cache.head_dim,
                           NameOf(cache.key_type), cache.latent_values, lacks);
    }
    if (AttentionSupportsHeadDim(cache.head_dim)) return absl::OkStatus();
    return InvalidArgument("cache.head_dim is %d, want 32, 64, 128 or, from compute capability 8.0 on, 256 on CUDA",
                           cache.head_dim);
  }

  absl::Status CheckModel(const ModelConfig& model) const override {
    RETURN_IF_ERROR(Use());
    return CheckCudaModel(model);
  }

  absl::Status RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                            Tensor qkv, const KvLayer& cache, Tensor q_out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("RopeAndStore");
    ASSIGN_OR_RETURN(const CudaBatch* cuda_batch, CudaBatchOf(batch));
    RETURN_IF_ERROR(CheckRopeAndStore(batch.host(), first_row, rope, norms, qkv, cache, q_out, activation_dtype_, kKvTypes));
    RETURN_IF_ERROR(CheckKvCache(cache));
    if (qkv.rows == 0) return absl::OkStatus();
    RopeStoreArgs args;
    ASSIGN_OR_RETURN(args.frequencies, FrequenciesOf(rope));
    args.places = cuda_batch->places(first_row, cache.ring);
    args.num_dims = static_cast<int>(rope.num_dims);
    args.neighbours = rope.neighbours;
    args.q_norm = norms.query;
    args.k_norm = norms.key;
    args.norm_epsilon = static_cast<float>(norms.epsilon);
    args.attention_factor = static_cast<float>(rope.attention_factor);
    args.num_heads = q_out.cols / cache.head_dim;
    args.qkv = RowsOf(qkv);
    args.q_out = RowsOf(q_out);
    args.cache = KvOf(cache);
    return Queued("RopeAndStore", LaunchRopeStore(args, compute_.get()));
  }

  absl::Status Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                         const AttentionParams& params, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("Attention");
    ASSIGN_OR_RETURN(const CudaBatch* cuda_batch, CudaBatchOf(batch));
    RETURN_IF_ERROR(CheckAttention(batch.host(), first_row, q, cache, params, out, activation_dtype_, kKvTypes));
    RETURN_IF_ERROR(CheckKvCache(cache));
    if (q.rows == 0) return absl::OkStatus();
    RETURN_IF_ERROR(CheckVectorRows("q", q));
    RETURN_IF_ERROR(CheckVectorRows("out", out));
    return QueueAttention({.batch = *cuda_batch,
                           .first_row = first_row,
                           .q = q,
                           .cache = cache,
                           .params = params,
                           .out = out,
                           .warpgroups = product_device_.wgmma},
                          compute_, workspace_);
  }

  absl::Status StoreLatent(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                           Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("StoreLatent");
    ASSIGN_OR_RETURN(const CudaBatch* cuda_batch, CudaBatchOf(batch));
    RETURN_IF_ERROR(CheckStoreLatent(batch.host(), first_row, rope, norm, latent, cache, q, q_out, activation_dtype_, kKvTypes));
    RETURN_IF_ERROR(CheckKvCache(cache));
    if (latent.rows == 0) return absl::OkStatus();
    LatentStoreArgs args;
    ASSIGN_OR_RETURN(args.frequencies, FrequenciesOf(rope));
    args.places = cuda_batch->places(first_row, cache.ring);
    args.num_dims = static_cast<int>(rope.num_dims);
    args.neighbours = rope.neighbours;
    args.attention_factor = static_cast<float>(rope.attention_factor);
    args.norm = norm.weight;
    args.norm_epsilon = static_cast<float>(norm.epsilon);
    args.num_heads = q_out.cols / cache.head_dim;
    args.latent = RowsOf(latent);
    args.q = RowsOf(q);
    args.q_out = RowsOf(q_out);
    args.cache = KvOf(cache);
    return Queued("StoreLatent", LaunchLatentStore(args, compute_.get()));
  }

  absl::Status MatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("MatMulPerHead");
    RETURN_IF_ERROR(CheckMatMulPerHead(in, weight, out, activation_dtype_));
    if (in.rows == 0) return absl::OkStatus();
    HeadProductArgs args = {.in = RowsOf(in),
                            .out = RowsOf(out),
                            .num_heads = weight.num_heads,
                            .weights = weight.data,
                            .matrix_bytes = weight.layout.bytes,
                            .matrix = MatrixOf(weight.layout),
                            .n = weight.layout.rows,
                            .k = weight.layout.cols};
    if (const int64_t least = HeadExpansionBytes(product_device_, args); least > 0) {
      args.expansion.bytes = std::max(least, kExpansionBytes);
    }
    RETURN_IF_ERROR(head_tables_.Place(args, compute_, workspace_));
    compute_.SetLast("MatMulPerHead");
    return ProductStatus(HeadProducts(product_device_, args, compute_.get()), "MatMulPerHead");
  }

  absl::Status GatedDelta(const DeviceBatch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                          const DeltaWeights& weights, const DeltaStates& states, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("GatedDelta");
    ASSIGN_OR_RETURN(const CudaBatch* cuda_batch, CudaBatchOf(batch));
    RETURN_IF_ERROR(CheckGatedDelta(batch.host(), first_row, net, inputs, weights, states, out, activation_dtype_));
    return QueueGatedDelta({.batch = *cuda_batch,
                            .first_row = first_row,
                            .net = net,
                            .inputs = inputs,
                            .weights = weights,
                            .states = states,
                            .out = out},
                           compute_, workspace_);
  }

  absl::Status MultiplyBySigmoid(Tensor gate, Tensor x) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("MultiplyBySigmoid");
    RETURN_IF_ERROR(CheckMultiplyBySigmoid(gate, x, activation_dtype_));
    return Queued("MultiplyBySigmoid", LaunchMultiplyBySigmoid(RowsOf(gate), RowsOf(x), compute_.get()));
  }

  absl::Status Glu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("Glu");
    RETURN_IF_ERROR(CheckGlu(gate, up, out, activation_dtype_));
    const GluArgs args = {.gate = RowsOf(gate),
                          .up = RowsOf(up),
                          .out = RowsOf(out),
                          .alpha = glu.alpha,
                          .limit = glu.limit,
                          .up_offset = glu.up_offset};
    return Queued("Glu", LaunchGlu(args, compute_.get()));
  }

  absl::Status Route(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                     float* weights) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("Route");
    RETURN_IF_ERROR(CheckRoute(in, router, config, experts, weights, activation_dtype_));
    if (in.rows == 0) return absl::OkStatus();
    RouteArgs args;
    args.in = RowsOf(in);
    args.weight = router.weight;
    args.bias = router.bias;
    args.sigmoid = config.score == RouterScore::kSigmoid;
    args.normalise = config.normalise;
    args.selection_bias = router.selection_bias;
    args.num_groups = static_cast<int>(config.num_groups);
    args.groups_used = static_cast<int>(config.groups_used);
    args.group_best = static_cast<int>(config.group_best);
    args.weight_scale = static_cast<float>(config.weight_scale);
    args.scored = args.sigmoid || !config.normalise || router.selection_bias != nullptr ||
                  config.groups_used < config.num_groups || config.weight_scale != 1;
    args.num_experts = config.num_experts;
    args.top_k = config.top_k;
    args.experts = experts;
    args.weights = weights;
    ASSIGN_OR_RETURN(args.workspace, workspace_.Reserve(RouteWorkspaceBytes(in.rows, config.num_experts)));
    return Queued("Route", LaunchRoute(args, compute_.get()));
  }

  absl::Status GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                             int32_t* entry_rows, int32_t* entry_outs) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("GroupByExpert");
    RETURN_IF_ERROR(CheckGroupByExpert(experts, rows, top_k, num_experts, offsets, entry_rows, entry_outs));
    if (rows == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::byte * workspace, workspace_.Reserve(GroupWorkspaceBytes(rows, top_k, num_experts)));
    return Queued("GroupByExpert", LaunchGroupByExpert(experts, rows, top_k, num_experts, offsets, entry_rows, entry_outs,
                                                       workspace, compute_.get()));
  }

  absl::Status ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                         const GluParams& glu, Tensor in, Tensor contributions) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("ExpertMlp");
    RETURN_IF_ERROR(CheckExpertMlp(layout, uses, groups, in, contributions, activation_dtype_, contribution_dtype_));
    ExpertMlpArgs args;
    args.shape = {.n_embd = layout.gate.cols,
                  .n_ff = layout.gate.rows,
                  .gate = MatrixOf(layout.gate, layout.gate_offset, layout.has_bias ? layout.gate_bias_offset : -1),
                  .up = MatrixOf(layout.up, layout.up_offset, layout.has_bias ? layout.up_bias_offset : -1),
                  .down = MatrixOf(layout.down, layout.down_offset, layout.has_bias ? layout.down_bias_offset : -1)};
    std::vector<ExpertMlpUse> expert_uses;
    int64_t rows = 0, most = 0;
    for (const ExpertUse& use : uses) {
      if (use.num_rows == 0) continue;
      expert_uses.push_back({use.record, use.group, static_cast<int32_t>(use.num_rows)});
      rows += use.num_rows;
      most = std::max(most, use.num_rows);
    }
    if (rows == 0) return absl::OkStatus();
    args.uses = expert_uses.data();
    args.num_uses = static_cast<int64_t>(expert_uses.size());
    args.offsets = groups.offsets;
    args.rows = groups.rows;
    args.outs = groups.outs;
    args.in = in.data;
    args.in_type = in.dtype;
    args.in_rows = in.rows;
    args.in_stride = in.stride;
    args.contributions = contributions.data;
    args.out_type = contributions.dtype;
    args.out_rows = contributions.rows;
    args.out_stride = contributions.stride;
    args.alpha = glu.alpha;
    args.limit = glu.limit;
    args.up_offset = glu.up_offset;
    const int64_t wanted = ExpertMlpWorkspaceBytes(args.shape, rows), least = ExpertMlpWorkspaceBytes(args.shape, most);
    const int64_t expanded = ExpertExpansionBytes(product_device_, args.shape, in.dtype, most);
    // An expert of very many rows leaves less to the expansion.
    const int64_t room = (workspace_.bytes() - least) / 256 * 256;
    args.expansion.bytes = expanded > 0 ? std::max(expanded, std::min(kExpansionBytes, room)) : 0;
    args.workspace_bytes = std::min(wanted, std::max(least, workspace_.bytes() - args.expansion.bytes));
    ASSIGN_OR_RETURN(std::byte * memory, workspace_.Reserve(args.expansion.bytes + args.workspace_bytes));
    args.expansion.data = memory;
    args.workspace = memory + args.expansion.bytes;
    compute_.SetLast("ExpertMlp");
    return ProductStatus(cuda::ExpertMlp(product_device_, args, compute_.get()), "ExpertMlp");
  }

  absl::Status ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                    Tensor contributions) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("ScatterContributions");
    RETURN_IF_ERROR(CheckScatterContributions(host_rows, outs, contributions, contribution_dtype_));
    return ScatterStaged(host_rows, outs, contributions);
  }

  absl::Status ScatterContributionsAsync(std::span<const float> host_rows, std::span<const int32_t> outs,
                                         Tensor contributions) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("ScatterContributions");
    RETURN_IF_ERROR(CheckScatterContributions(host_rows, outs, contributions, contribution_dtype_));
    return ScatterInPlace(host_rows, outs, contributions);
  }

  absl::Status ScatterComputedAsync(std::span<const std::byte> host_rows, std::span<const int32_t> outs,
                                    Tensor contributions) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("ScatterComputed");
    RETURN_IF_ERROR(CheckTensor("contributions", contributions));
    RETURN_IF_ERROR(CheckDType("contributions", contributions.dtype, {contribution_dtype_}));
    // Words of four bytes, which are copied as they are, whatever numbers they hold.
    const int64_t in_a_word = 4 / contributions.element_bytes();
    if (contributions.cols % in_a_word != 0 || contributions.stride % in_a_word != 0) {
      return InvalidArgument("contributions has %d columns, want a multiple of %d", contributions.cols, in_a_word);
    }
    const Tensor words(contributions.data, DType::kF32, contributions.rows, contributions.cols / in_a_word,
                       contributions.stride / in_a_word);
    const std::span<const float> host_words(reinterpret_cast<const float*>(host_rows.data()), host_rows.size() / 4);
    RETURN_IF_ERROR(CheckScatterContributions(host_words, outs, words, DType::kF32));
    return ScatterInPlace(host_words, outs, words);
  }

  // The kernel reads the rows where they lie, if it reaches them.
  absl::Status ScatterInPlace(std::span<const float> host_rows, std::span<const int32_t> outs, Tensor contributions) {
    const auto outs_bytes = static_cast<int64_t>(outs.size_bytes());
    if (!transfers_->KernelsReach(std::as_bytes(host_rows)) || outs_bytes > Staging::kBufferBytes)
      return ScatterStaged(host_rows, outs, contributions);
    ASSIGN_OR_RETURN(std::byte * staged, transfers_->Stage(outs_bytes));
    std::memcpy(staged, outs.data(), outs_bytes);
    return Queued("ScatterContributions",
                  LaunchScatterRows(host_rows.data(), reinterpret_cast<const int32_t*>(staged), static_cast<int64_t>(outs.size()),
                                    RowsOf(contributions), compute_.get()));
  }

  absl::Status ScatterStaged(std::span<const float> host_rows, std::span<const int32_t> outs, Tensor contributions) {
    // The kernel reads the staged rows across the link itself: one launch, and no second buffer on the device.
    const int64_t cols = contributions.cols, row_bytes = cols * 4 + 4;
    const int64_t rows_at_once = (Staging::kBufferBytes - 256) / row_bytes;
    if (rows_at_once < 1)
      return InvalidArgument("contributions has %d columns, want at most %d", cols, Staging::kBufferBytes / 4 - 65);
    for (int64_t first = 0; first < static_cast<int64_t>(outs.size()); first += rows_at_once) {
      const int64_t count = std::min(rows_at_once, static_cast<int64_t>(outs.size()) - first);
      const int64_t outs_offset = AlignUp(count * cols * 4, 16);
      ASSIGN_OR_RETURN(std::byte * staged, transfers_->Stage(outs_offset + count * 4));
      std::memcpy(staged, host_rows.data() + first * cols, count * cols * 4);
      std::memcpy(staged + outs_offset, outs.data() + first, count * 4);
      RETURN_IF_ERROR(Queued("ScatterContributions", LaunchScatterRows(reinterpret_cast<const float*>(staged),
                                                                       reinterpret_cast<const int32_t*>(staged + outs_offset),
                                                                       count, RowsOf(contributions), compute_.get())));
    }
    return absl::OkStatus();
  }

  absl::Status Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("Combine");
    RETURN_IF_ERROR(CheckCombine(contributions, weights, top_k, x, contribution_dtype_));
    return Queued("Combine", LaunchCombine(RowsOf(contributions), weights, top_k, RowsOf(x), compute_.get()));
  }

  absl::Status GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("GatherRows");
    RETURN_IF_ERROR(CheckGatherRows(in, host_rows, out));
    RETURN_IF_ERROR(CheckDType("in", in.dtype, {DType::kF32, activation_dtype_, contribution_dtype_}));
    constexpr int64_t kRowsAtOnce = Staging::kBufferBytes / 4;
    for (int64_t first = 0; first < out.rows; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, out.rows - first);
      ASSIGN_OR_RETURN(std::byte * staged, transfers_->Stage(count * 4));
      std::memcpy(staged, host_rows.data() + first, count * 4);
      RETURN_IF_ERROR(Queued("GatherRows", LaunchGatherRows(RowsOf(in), reinterpret_cast<const int32_t*>(staged),
                                                            RowsOf(out.Rows(first, count)), compute_.get())));
    }
    return absl::OkStatus();
  }

  absl::Status DownloadRows(Tensor in, std::span<const int32_t> host_rows, std::span<float> host_out) override {
    RETURN_IF_ERROR(Use());
    const CudaTimeline::Scope span = SpanOf("DownloadRows");
    RETURN_IF_ERROR(CheckDownloadRows(in, host_rows, host_out));
    RETURN_IF_ERROR(CheckDType("in", in.dtype, {DType::kF32, activation_dtype_, contribution_dtype_}));
    const int64_t row_bytes = in.cols * 4, rows_at_once = Staging::kBufferBytes / std::max<int64_t>(row_bytes, 4);
    if (rows_at_once < 1) return InvalidArgument("in has %d columns, want at most %d", in.cols, Staging::kBufferBytes / 4);
    return transfers_->Receive(
        std::as_writable_bytes(host_out), rows_at_once * row_bytes, [&](int64_t part, std::byte* to) -> absl::Status {
          const auto rows = host_rows.subspan(part * rows_at_once);
          const int64_t count = std::min(rows_at_once, static_cast<int64_t>(rows.size()));
          ASSIGN_OR_RETURN(std::byte * staged, transfers_->Stage(count * 4));
          std::memcpy(staged, rows.data(), count * 4);
          return Queued("DownloadRows", LaunchGatherFloats(RowsOf(in), reinterpret_cast<const int32_t*>(staged), count,
                                                           reinterpret_cast<float*>(to), compute_.get()));
        });
  }

  absl::StatusOr<std::vector<LogitsResult>> ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) override {
    RETURN_IF_ERROR(Use());
    RETURN_IF_ERROR(CheckReadLogits(logits, requests));
    return LogitsReader(compute_, *transfers_, workspace_).Read(logits, requests);
  }

 private:
  CudaOps() = default;

  // Kernels and memory belong to the device that is current in the calling thread.
  absl::Status Use() const { return CudaStatus(cudaSetDevice(device_), absl::StrFormat("using GPU %d", device_)); }

  CudaTimeline::Scope SpanOf(const char* op) { return compute_.SpanOf(op); }
  absl::Status Queued(const char* op, cudaError_t error) { return compute_.Queued(op, error); }

  // `in` with `cols` columns: the tiles of a matrix that lacks some have zeros for them. Until the workspace's next Reserve.
  absl::StatusOr<Tensor> Padded(Tensor in, int64_t cols) {
    if (in.cols == cols) return in;
    ASSIGN_OR_RETURN(std::byte * memory, workspace_.Reserve(in.rows * cols * in.element_bytes()));
    const Tensor padded(memory, in.dtype, in.rows, cols);
    RETURN_IF_ERROR(Queued("MatMul", LaunchPadRows(RowsOf(in), RowsOf(padded), compute_.get())));
    return padded;
  }

  // The frequencies of a RopeConfig on the device; a model has one or two.
  absl::StatusOr<const double*> FrequenciesOf(const RopeConfig& rope) {
    std::vector<double> wanted = RopeFrequencies(rope);
    for (const Frequencies& known : frequencies_) {
      if (known.values == wanted) return reinterpret_cast<const double*>(known.memory.data());
    }
    Frequencies made;
    ASSIGN_OR_RETURN(made.memory, DeviceMemory::Allocate(std::max<int64_t>(8, static_cast<int64_t>(wanted.size()) * 8)));
    RETURN_IF_ERROR(Upload(made.memory.data(), std::as_bytes(std::span(wanted))));
    made.values = std::move(wanted);
    frequencies_.push_back(std::move(made));
    return reinterpret_cast<const double*>(frequencies_.back().memory.data());
  }

  struct Frequencies {
    std::vector<double> values;
    DeviceMemory memory;
  };

  int device_ = 0;
  std::string name_;
  DType activation_dtype_ = DType::kBF16, contribution_dtype_ = DType::kBF16;
  ProductDevice product_device_;
  std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>();
  std::shared_ptr<BatchMemoryPool> batch_memory_ = std::make_shared<BatchMemoryPool>();
  CudaTimeline timeline_;
  ComputeQueue compute_;
  std::unique_ptr<CopyEngine> copies_;
  std::unique_ptr<HostTransfers> transfers_;
  Workspace workspace_;
  std::vector<Frequencies> frequencies_;
  HeadTables head_tables_;
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(const BackendOptions& options) {
  int count = 0;
  RETURN_IF_ERROR(cuda::CudaStatus(cudaGetDeviceCount(&count), "looking for GPUs"));
  if (options.device < 0 || options.device >= count) {
    return FailedPrecondition("there is no GPU %d: this machine has %d, numbered from 0", options.device, count);
  }
  return cuda::CudaOps::Create(options.device);
}

}  // namespace ferry
