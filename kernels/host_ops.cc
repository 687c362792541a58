#include "kernels/host_ops.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "common/deadline.h"
#include "common/host_memory.h"
#include "common/populate.h"
#include "common/shm/futex.h"
#include "common/thread_limit.h"
#include "kernels/checks.h"
#include "kernels/kv_cache_format.h"

namespace ferry {
namespace {

constexpr int64_t kBufferAlignment = 256;
constexpr int64_t kHugePage = 2 << 20;
constexpr absl::Duration kEventSpin = absl::Microseconds(20);  // a thread's switch costs a few: sleep for longer waits

constexpr std::initializer_list<DType> kKvTypes = {DType::kF16, DType::kQ8_0};
constexpr std::initializer_list<DType> kKvTypesWithF32 = {DType::kF16, DType::kQ8_0, DType::kF32};

class HostEvent final : public EventState {
 public:
  explicit HostEvent(bool passed) : passed_(passed ? 1 : 0) {}

  bool passed() const { return passed_.load(std::memory_order_acquire) != 0; }
  void Pass() {
    passed_.store(1, std::memory_order_release);
    FutexWake(passed_, FutexScope::kProcess);
  }
  // Whether it has passed by `deadline`.
  bool WaitUntil(Deadline deadline) const {
    if (SpinUntil(std::min(kEventSpin, deadline.Remaining()), [this] { return passed(); })) return true;
    while (!passed()) {
      if (deadline.Passed()) return false;
      FutexWait(passed_, 0, deadline, FutexScope::kProcess);
    }
    return true;
  }

 private:
  std::atomic<uint32_t> passed_;
};

// The event of a HostOps, or null when it is none or another backend's.
const HostEvent* HostEventOf(const Event& event) { return dynamic_cast<const HostEvent*>(event.get()); }

absl::Status CheckEvent(std::string_view name, const Event& event) {
  if (event == nullptr || HostEventOf(event) != nullptr) return absl::OkStatus();
  return InvalidArgument("%s is an event of another backend", name);
}

absl::StatusOr<const HostBatch*> HostBatchOf(const DeviceBatch& batch) {
  const auto* host_batch = dynamic_cast<const HostBatch*>(&batch);
  if (host_batch == nullptr) return InvalidArgument("batch was prepared by another backend");
  return host_batch;
}

bool Overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::less<>()(a.data(), b.data() + b.size()) && std::less<>()(b.data(), a.data() + a.size());
}

}  // namespace

HostBatch::HostBatch(Batch batch) : DeviceBatch(std::move(batch)) {
  sequences_.reserve(host_.num_rows());
  positions_.reserve(host_.num_rows());
  for (size_t i = 0; i < host_.sequences.size(); ++i) {
    for (int64_t row = 0; row < host_.sequences[i].num_rows; ++row) {
      sequences_.push_back(static_cast<int32_t>(i));
      positions_.push_back(host_.sequences[i].first_position + row);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------
// copies

struct HostOps::Copies {
  struct Job {
    void* dst;
    std::span<const std::byte> src;
    std::vector<Event> after;
    std::shared_ptr<HostEvent> done;
  };

  explicit Copies(HostTimeline* timeline) : timeline(*timeline) {}
  ~Copies() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    queued.notify_one();
    if (thread.joinable()) thread.join();
  }

  // ResourceExhausted: the thread cannot be started.
  absl::StatusOr<std::shared_ptr<HostEvent>> Push(void* dst, std::span<const std::byte> src, std::span<const Event> after) {
    auto done = std::make_shared<HostEvent>(false);
    {
      const std::lock_guard lock(mutex);
      if (!thread.joinable()) {
        ASSIGN_OR_RETURN(thread, StartThread([this] { Run(); }));
      }
      jobs.push_back({dst, src, std::vector<Event>(after.begin(), after.end()), done});
      last = done;
    }
    queued.notify_one();
    return done;
  }

  void Run() {
    std::unique_lock lock(mutex);
    for (;;) {
      queued.wait(lock, [this] { return stopping || !jobs.empty(); });
      if (jobs.empty()) return;
      const Job job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      // Compute on a host is done when it is marked and copies pass in order, so none of these waits is long.
      for (const Event& event : job.after) {
        if (event != nullptr) HostEventOf(event)->WaitUntil(Deadline::Never());
      }
      {
        const HostTimeline::Scope span(timeline, "CopyAsync", TimelineSpan::Queue::kCopy);
        if (!job.src.empty()) std::memcpy(job.dst, job.src.data(), job.src.size());
      }
      job.done->Pass();
      lock.lock();
    }
  }

  HostTimeline& timeline;
  std::mutex mutex;
  std::condition_variable queued;
  std::deque<Job> jobs;             // guarded by mutex, like the next two
  std::shared_ptr<HostEvent> last;  // of the newest job
  bool stopping = false;
  std::thread thread;  // from the first copy on; last: it uses all the others
};

HostOps::HostOps() : copies_(std::make_unique<Copies>(&timeline_)) {}
HostOps::~HostOps() = default;

absl::StatusOr<DeviceBuffer> HostOps::Allocate(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("bytes is %d, want 0 or more", bytes);
  if (bytes == 0) return DeviceBuffer();
  // Memory is given when it is touched: the kernel would say yes now and kill us later.
  if (bytes >= kHugePage) {
    const HostMemory memory = ReadHostMemory();
    if (bytes > memory.available_bytes) {
      return ResourceExhausted("a buffer of %d bytes is more than the %d bytes available (%s)", bytes, memory.available_bytes,
                               memory.limited_by);
    }
  }
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kBufferAlignment;
  if (bytes > std::numeric_limits<int64_t>::max() - alignment) {
    return ResourceExhausted("a buffer of %d bytes cannot be allocated", bytes);
  }
  const size_t rounded = static_cast<size_t>((bytes + alignment - 1) / alignment * alignment);
  void* data = std::aligned_alloc(alignment, rounded);
  if (data == nullptr) return ResourceExhausted("a buffer of %d bytes cannot be allocated", bytes);
  if (bytes >= kHugePage) madvise(data, rounded, MADV_HUGEPAGE);  // advice: fewer TLB misses where it is taken
  return DeviceBuffer(static_cast<std::byte*>(data), bytes, [](std::byte* memory) { std::free(memory); });
}

void HostOps::Populate(const DeviceBuffer& memory) {
  // Large buffers begin at a page, and the rest of their last page is theirs.
  if (memory.bytes() >= kHugePage) PopulatePages({memory.data(), static_cast<size_t>(memory.bytes())});
}

absl::StatusOr<DeviceMemoryInfo> HostOps::MemoryInfo() {
  const HostMemory memory = ReadHostMemory();
  return DeviceMemoryInfo{memory.available_bytes, memory.total_bytes};
}

absl::Status HostOps::Upload(void* dst, std::span<const std::byte> host_src) {
  if (host_src.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("dst", dst));
  std::memcpy(dst, host_src.data(), host_src.size());
  return absl::OkStatus();
}

absl::Status HostOps::Download(std::span<std::byte> host_dst, const void* src) {
  if (host_dst.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull("src", src));
  std::memcpy(host_dst.data(), src, host_dst.size());
  return absl::OkStatus();
}

absl::Status HostOps::UploadAllAsync(std::span<const HostCopy> copies) {
  for (const HostCopy& copy : copies) RETURN_IF_ERROR(UploadAsync(copy.device, copy.host));
  return absl::OkStatus();
}

absl::Status HostOps::DownloadAllAsync(std::span<const HostCopy> copies) {
  for (const HostCopy& copy : copies) RETURN_IF_ERROR(DownloadAsync(copy.host, copy.device));
  return absl::OkStatus();
}

absl::Status HostOps::PinHost(std::span<const std::byte> region, bool) {
  if (region.empty()) return InvalidArgument("region is empty");
  for (const std::span<const std::byte> other : pinned_) {
    if (Overlap(region, other)) {
      return InvalidArgument("region of %d bytes overlaps one of %d bytes that is pinned already", region.size(), other.size());
    }
  }
  pinned_.push_back(region);
  return absl::OkStatus();
}

void HostOps::UnpinHost(std::span<const std::byte> region) {
  std::erase_if(pinned_,
                [&](std::span<const std::byte> other) { return other.data() == region.data() && other.size() == region.size(); });
}

absl::StatusOr<Event> HostOps::CopyAsync(void* dst, std::span<const std::byte> host_src, std::span<const Event> after) {
  if (!host_src.empty()) RETURN_IF_ERROR(CheckNotNull("dst", dst));
  for (const std::span<const std::byte> region : pinned_) {
    const bool inside = !std::less<>()(host_src.data(), region.data()) &&
                        !std::less<>()(region.data() + region.size(), host_src.data() + host_src.size());
    if (!host_src.empty() && Overlap(host_src, region) && !inside) {
      return InvalidArgument("host_src of %d bytes crosses the end of a pinned region of %d bytes", host_src.size(),
                             region.size());
    }
  }
  for (const Event& event : after) RETURN_IF_ERROR(CheckEvent("after", event));
  ASSIGN_OR_RETURN(std::shared_ptr<HostEvent> done, copies_->Push(dst, host_src, after));
  return Event(std::move(done));
}

absl::StatusOr<Event> HostOps::MarkCompute() { return Event(std::make_shared<HostEvent>(true)); }

absl::Status HostOps::ComputeAfter(const Event& event) {
  RETURN_IF_ERROR(CheckEvent("event", event));
  if (event == nullptr || HostEventOf(event)->passed()) return absl::OkStatus();
  const HostTimeline::Scope span(timeline_, kWaitSpan);
  HostEventOf(event)->WaitUntil(Deadline::Never());  // a copy that is on its way: it ends
  return absl::OkStatus();
}

bool HostOps::Passed(const Event& event) {
  const HostEvent* host_event = HostEventOf(event);
  return host_event == nullptr || host_event->passed();
}

absl::Status HostOps::Wait(const Event& event, Deadline deadline) {
  RETURN_IF_ERROR(CheckEvent("event", event));
  if (event == nullptr || HostEventOf(event)->WaitUntil(deadline)) return absl::OkStatus();
  return DeadlineExceeded("the event has not passed in time");
}

absl::Status HostOps::Synchronize(Deadline deadline) {
  Event last;
  {
    const std::lock_guard lock(copies_->mutex);
    last = copies_->last;
  }
  return Wait(last, deadline);
}

absl::Status HostOps::StartTimeline(Deadline) {
  timeline_.Start();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TimelineSpan>> HostOps::TakeTimeline() { return timeline_.Take(); }

// -------------------------------------------------------------------------------------------------------------
// operations

absl::StatusOr<std::unique_ptr<DeviceBatch>> HostOps::PrepareBatch(Batch batch) {
  RETURN_IF_ERROR(CheckBatch(batch));
  return std::unique_ptr<DeviceBatch>(std::make_unique<HostBatch>(std::move(batch)));
}

absl::Status HostOps::Embed(const DeviceBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) {
  const HostTimeline::Scope span(timeline_, "Embed");
  ASSIGN_OR_RETURN(const HostBatch* host_batch, HostBatchOf(batch));
  RETURN_IF_ERROR(CheckEmbed(batch.host(), first_row, table, x));
  return x.rows == 0 ? absl::OkStatus() : DoEmbed(*host_batch, first_row, table, x);
}

absl::Status HostOps::RmsNorm(Tensor x, const float* weight, double epsilon, Tensor out) {
  const HostTimeline::Scope span(timeline_, "RmsNorm");
  RETURN_IF_ERROR(CheckRmsNorm(x, weight, epsilon, out, DType::kF32));
  return x.rows == 0 ? absl::OkStatus() : DoRmsNorm(x, weight, epsilon, out);
}

absl::Status HostOps::MatMul(Tensor in, const TiledMatrix& weight, const float* bias, Tensor out, bool accumulate) {
  const HostTimeline::Scope span(timeline_, "MatMul");
  RETURN_IF_ERROR(CheckMatMul(in, weight, out, accumulate, DType::kF32));
  return in.rows == 0 ? absl::OkStatus() : DoMatMul(in, weight, bias, out, accumulate);
}

absl::Status HostOps::CheckWeights(DType dtype) const {
  if (const std::optional<DTypeInfo> info = InfoOf(dtype); info && info->computable) return absl::OkStatus();
  return Unimplemented("type %s; the %s backend takes %s", NameOf(dtype), name(), ComputableTypes());
}

absl::Status HostOps::CheckExperts(const ExpertLayout& layout) const {
  for (const TiledLayout* matrix : {&layout.gate, &layout.up, &layout.down}) RETURN_IF_ERROR(CheckWeights(matrix->dtype));
  return absl::OkStatus();
}

absl::Status HostOps::CheckKvCache(const KvLayer& cache) const {
  return CheckKvShape(cache, StoresKvInF32() ? kKvTypesWithF32 : kKvTypes);
}

absl::Status HostOps::CheckModel(const ModelConfig&) const { return absl::OkStatus(); }

absl::Status HostOps::RopeAndStore(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                                   Tensor qkv, const KvLayer& cache, Tensor q_out) {
  const HostTimeline::Scope span(timeline_, "RopeAndStore");
  ASSIGN_OR_RETURN(const HostBatch* host_batch, HostBatchOf(batch));
  RETURN_IF_ERROR(CheckRopeAndStore(batch.host(), first_row, rope, norms, qkv, cache, q_out, DType::kF32,
                                    StoresKvInF32() ? kKvTypesWithF32 : kKvTypes));
  return qkv.rows == 0 ? absl::OkStatus() : DoRopeAndStore(*host_batch, first_row, rope, norms, qkv, cache, q_out);
}

absl::Status HostOps::Attention(const DeviceBatch& batch, int64_t first_row, Tensor q, const KvLayer& cache,
                                const AttentionParams& params, Tensor out) {
  const HostTimeline::Scope span(timeline_, "Attention");
  ASSIGN_OR_RETURN(const HostBatch* host_batch, HostBatchOf(batch));
  RETURN_IF_ERROR(
      CheckAttention(batch.host(), first_row, q, cache, params, out, DType::kF32, StoresKvInF32() ? kKvTypesWithF32 : kKvTypes));
  return q.rows == 0 ? absl::OkStatus() : DoAttention(*host_batch, first_row, q, cache, params, out);
}

absl::Status HostOps::StoreLatent(const DeviceBatch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                                  Tensor latent, const KvLayer& cache, Tensor q, Tensor q_out) {
  const HostTimeline::Scope span(timeline_, "StoreLatent");
  ASSIGN_OR_RETURN(const HostBatch* host_batch, HostBatchOf(batch));
  RETURN_IF_ERROR(CheckStoreLatent(batch.host(), first_row, rope, norm, latent, cache, q, q_out, DType::kF32,
                                   StoresKvInF32() ? kKvTypesWithF32 : kKvTypes));
  return q.rows == 0 ? absl::OkStatus() : DoStoreLatent(*host_batch, first_row, rope, norm, latent, cache, q, q_out);
}

absl::Status HostOps::MatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) {
  const HostTimeline::Scope span(timeline_, "MatMulPerHead");
  RETURN_IF_ERROR(CheckMatMulPerHead(in, weight, out, DType::kF32));
  return in.rows == 0 ? absl::OkStatus() : DoMatMulPerHead(in, weight, out);
}

absl::Status HostOps::GatedDelta(const DeviceBatch& batch, int64_t first_row, const AttentionConfig& net,
                                 const DeltaInputs& inputs, const DeltaWeights& weights, const DeltaStates& states, Tensor out) {
  const HostTimeline::Scope span(timeline_, "GatedDelta");
  ASSIGN_OR_RETURN(const HostBatch* host_batch, HostBatchOf(batch));
  RETURN_IF_ERROR(CheckGatedDelta(batch.host(), first_row, net, inputs, weights, states, out, DType::kF32));
  return out.rows == 0 ? absl::OkStatus() : DoGatedDelta(*host_batch, first_row, net, inputs, weights, states, out);
}

absl::Status HostOps::MultiplyBySigmoid(Tensor gate, Tensor x) {
  const HostTimeline::Scope span(timeline_, "MultiplyBySigmoid");
  RETURN_IF_ERROR(CheckMultiplyBySigmoid(gate, x, DType::kF32));
  return x.rows == 0 ? absl::OkStatus() : DoMultiplyBySigmoid(gate, x);
}

absl::Status HostOps::Glu(Tensor gate, Tensor up, const GluParams& glu, Tensor out) {
  const HostTimeline::Scope span(timeline_, "Glu");
  RETURN_IF_ERROR(CheckGlu(gate, up, out, DType::kF32));
  return gate.rows == 0 ? absl::OkStatus() : DoGlu(gate, up, glu, out);
}

absl::Status HostOps::Route(Tensor in, const RouterWeights& router, const RouterConfig& config, int32_t* experts,
                            float* weights) {
  const HostTimeline::Scope span(timeline_, "Route");
  RETURN_IF_ERROR(CheckRoute(in, router, config, experts, weights, DType::kF32));
  return in.rows == 0 ? absl::OkStatus() : DoRoute(in, router, config, experts, weights);
}

absl::Status HostOps::GroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                    int32_t* entry_rows, int32_t* entry_outs) {
  const HostTimeline::Scope span(timeline_, "GroupByExpert");
  RETURN_IF_ERROR(CheckGroupByExpert(experts, rows, top_k, num_experts, offsets, entry_rows, entry_outs));
  if (rows == 0) return absl::OkStatus();
  const int64_t num_entries = rows * top_k;
  for (int64_t i = 0; i < num_entries; ++i) {
    if (experts[i] < 0 || experts[i] >= num_experts) {
      return InvalidArgument("experts[%d, %d] is %d, want 0 to %d", i / top_k, i % top_k, experts[i], num_experts - 1);
    }
  }
  std::fill_n(offsets, num_experts + 1, 0);
  for (int64_t i = 0; i < num_entries; ++i) ++offsets[experts[i] + 1];
  std::partial_sum(offsets, offsets + num_experts + 1, offsets);
  std::vector<int32_t> next(offsets, offsets + num_experts);
  for (int64_t i = 0; i < num_entries; ++i) {
    const int32_t entry = next[experts[i]]++;
    entry_rows[entry] = static_cast<int32_t>(i / top_k);
    entry_outs[entry] = static_cast<int32_t>(i);
  }
  return absl::OkStatus();
}

absl::Status HostOps::ExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                                const GluParams& glu, Tensor in, Tensor contributions) {
  const HostTimeline::Scope span(timeline_, "ExpertMlp");
  RETURN_IF_ERROR(CheckExpertMlp(layout, uses, groups, in, contributions, DType::kF32, DType::kF32));
  int64_t num_rows = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    const int32_t group = uses[i].group;
    const int64_t first = groups.offsets[group], end = groups.offsets[group + 1];
    if (first < 0 || end < first || end > groups.num_entries) {
      return InvalidArgument("groups.offsets[%d] and the next are %d and %d, want them in order and at most %d", group, first,
                             end, groups.num_entries);
    }
    if (end - first != uses[i].num_rows) {
      return InvalidArgument("uses[%d].num_rows is %d, want %d, the size of group %d", i, uses[i].num_rows, end - first, group);
    }
    for (int64_t entry = first; entry < end; ++entry) {
      if (groups.rows[entry] < 0 || groups.rows[entry] >= in.rows) {
        return InvalidArgument("groups.rows[%d] is %d, want 0 to %d", entry, groups.rows[entry], in.rows - 1);
      }
      if (groups.outs[entry] < 0 || groups.outs[entry] >= contributions.rows) {
        return InvalidArgument("groups.outs[%d] is %d, want 0 to %d", entry, groups.outs[entry], contributions.rows - 1);
      }
    }
    num_rows += end - first;
  }
  return num_rows == 0 ? absl::OkStatus() : DoExpertMlp(layout, uses, groups, glu, in, contributions);
}

absl::Status HostOps::ScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                           Tensor contributions) {
  const HostTimeline::Scope span(timeline_, "ScatterContributions");
  RETURN_IF_ERROR(CheckScatterContributions(host_rows, outs, contributions, DType::kF32));
  for (size_t i = 0; i < outs.size(); ++i) {
    std::memcpy(RowOf(contributions, outs[i]), host_rows.data() + i * contributions.cols, contributions.cols * sizeof(float));
  }
  return absl::OkStatus();
}

absl::Status HostOps::ScatterComputedAsync(std::span<const std::byte> host_rows, std::span<const int32_t> outs,
                                           Tensor contributions) {
  return ScatterContributions({reinterpret_cast<const float*>(host_rows.data()), host_rows.size() / sizeof(float)}, outs,
                              contributions);
}

absl::Status HostOps::Combine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) {
  const HostTimeline::Scope span(timeline_, "Combine");
  RETURN_IF_ERROR(CheckCombine(contributions, weights, top_k, x, DType::kF32));
  return x.rows == 0 ? absl::OkStatus() : DoCombine(contributions, weights, top_k, x);
}

absl::Status HostOps::GatherRows(Tensor in, std::span<const int32_t> host_rows, Tensor out) {
  const HostTimeline::Scope span(timeline_, "GatherRows");
  RETURN_IF_ERROR(CheckGatherRows(in, host_rows, out));
  RETURN_IF_ERROR(CheckDType("in", in.dtype, {DType::kF32}));
  for (size_t i = 0; i < host_rows.size(); ++i) {
    std::memcpy(RowOf(out, static_cast<int64_t>(i)), RowOf(in, host_rows[i]), in.cols * sizeof(float));
  }
  return absl::OkStatus();
}

absl::Status HostOps::DownloadRows(Tensor in, std::span<const int32_t> host_rows, std::span<float> host_out) {
  const HostTimeline::Scope span(timeline_, "DownloadRows");
  RETURN_IF_ERROR(CheckDownloadRows(in, host_rows, host_out));
  RETURN_IF_ERROR(CheckDType("in", in.dtype, {DType::kF32}));
  for (size_t i = 0; i < host_rows.size(); ++i) {
    std::memcpy(host_out.data() + i * in.cols, RowOf(in, host_rows[i]), in.cols * sizeof(float));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LogitsResult>> HostOps::ReadLogits(Tensor logits, std::span<const LogitsRequest> requests) {
  const HostTimeline::Scope span(timeline_, "ReadLogits");
  RETURN_IF_ERROR(CheckReadLogits(logits, requests));
  std::vector<LogitsResult> results(requests.size());
  ForEach(logits.rows, [&](int64_t row) {
    const float* values = RowOf(logits, row);
    const LogitsRequest& request = requests[row];
    LogitsResult& result = results[row];
    result.log_sum_exp = DoLogSumExp(values, logits.cols);
    if (request.target >= 0) result.target_logit = values[request.target];
    if (request.top_n >= logits.cols) {
      result.logits.assign(values, values + logits.cols);
      return;
    }
    if (request.top_n == 0) return;
    // A heap of the best so far, its worst at the front; NaN is worse than any number. A later id of the same logit is worse.
    const auto better = [values](int32_t a, int32_t b) {
      const bool a_nan = std::isnan(values[a]), b_nan = std::isnan(values[b]);
      if (a_nan != b_nan) return b_nan;
      return a_nan || values[a] == values[b] ? a < b : values[a] > values[b];
    };
    std::vector<int32_t>& best = result.ids;
    best.resize(request.top_n);
    std::iota(best.begin(), best.end(), 0);
    std::make_heap(best.begin(), best.end(), better);
    // Whole stretches without anything better than the worst are passed over by a loop that the compiler vectorises.
    constexpr int64_t kStretch = 64;
    for (int64_t first = request.top_n; first < logits.cols; first += kStretch) {
      const int64_t end = std::min(first + kStretch, logits.cols);
      const float worst = values[best.front()];
      int any = std::isnan(worst);
      for (int64_t i = first; i < end; ++i) any |= values[i] > worst;
      if (any == 0) continue;
      for (int32_t id = static_cast<int32_t>(first); id < end; ++id) {
        if (!better(id, best.front())) continue;
        std::pop_heap(best.begin(), best.end(), better);
        best.back() = id;
        std::push_heap(best.begin(), best.end(), better);
      }
    }
    std::sort_heap(best.begin(), best.end(), better);
    for (const int32_t id : best) result.logits.push_back(values[id]);
  });
  return results;
}

// ------------------------------------------------------------------------------------------------ defaults for
// subclasses

absl::Status HostOps::DoEmbed(const HostBatch& batch, int64_t first_row, const TiledMatrix& table, Tensor x) {
  ForEach(x.rows, [&](int64_t row) { DecodeTiledRow(table, batch.host().token_ids[first_row + row], RowOf(x, row)); });
  return absl::OkStatus();
}

absl::Status HostOps::DoMatMulPerHead(Tensor in, const HeadMatrices& weight, Tensor out) {
  const int64_t in_cols = in.cols / weight.num_heads, out_cols = out.cols / weight.num_heads;
  for (int64_t head = 0; head < weight.num_heads; ++head) {
    RETURN_IF_ERROR(DoMatMul(in.Cols(head * in_cols, weight.layout.cols), weight.Of(head), nullptr,
                             out.Cols(head * out_cols, weight.layout.rows), /*accumulate=*/false));
  }
  return absl::OkStatus();
}

absl::Status HostOps::DoCombine(Tensor contributions, const float* weights, int64_t top_k, Tensor x) {
  ForEach(x.rows, [&](int64_t row) {
    float* out = RowOf(x, row);
    // Ranks are added up before the sum joins x, in F32: the same order for every row.
    constexpr int64_t kChunk = 256;
    float sum[kChunk];
    for (int64_t first = 0; first < x.cols; first += kChunk) {
      const int64_t count = std::min(kChunk, x.cols - first);
      std::fill_n(sum, count, 0.0f);
      for (int64_t rank = 0; rank < top_k; ++rank) {
        const float weight = weights[row * top_k + rank];
        const float* contribution = RowOf(contributions, row * top_k + rank) + first;
        for (int64_t i = 0; i < count; ++i) sum[i] += weight * contribution[i];
      }
      for (int64_t i = 0; i < count; ++i) out[first + i] += sum[i];
    }
  });
  return absl::OkStatus();
}

float HostOps::DoLogSumExp(const float* row, int64_t count) {
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count; ++i) largest = std::max<double>(largest, row[i]);
  if (!std::isfinite(largest)) largest = 0;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(row[i] - largest);
  return static_cast<float>(largest + std::log(sum));
}

void HostOps::ForEach(int64_t count, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace ferry
