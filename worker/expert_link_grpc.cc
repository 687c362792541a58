#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "kernels/ops.h"
#include "worker/expert_answers.h"
#include "worker/expert_link.h"
#include "worker/record_assembler.h"

namespace ferry {
namespace {

constexpr int64_t kMaxCallBytes = kMaxMessageBytes / 2;
constexpr absl::Duration kFetchTimeout = absl::Seconds(60);
constexpr int kMaxFetchAttempts = 3;

class GrpcLink final : public ExpertLink {
 public:
  GrpcLink(const GrpcLinkOptions& options, internal::v1::Cluster::StubInterface* cluster, Ops* ops)
      : options_(options), cluster_(*cluster), ops_(*ops) {
    const int64_t row_bytes = options.n_embd * static_cast<int64_t>(sizeof(float));
    max_rows_ = std::max<int64_t>(1, std::min(options.max_rows, kMaxCallBytes / row_bytes));
    max_entries_ = std::max<int64_t>(1, std::min(options.max_entries, kMaxCallBytes / row_bytes));
    if (!options.records) return;
    record_bytes_ = options.arena.max_record_bytes();
    staging_.reset(new (std::align_val_t{kRecordAlignment}) std::byte[record_bytes_ * options.num_buffers]);
    const std::span<const std::byte> region(staging_.get(), record_bytes_ * options.num_buffers);
    if (const absl::Status pinned = ops_.PinHost(region, /*read_only=*/false); pinned.ok()) {
      pinned_ = region;
    } else {
      spdlog::warn("buffers for expert records could not be pinned, copies will be slower: {}", pinned.ToString());
    }
    for (int i = 0; i < options.num_buffers; ++i) free_buffers_.push_back(staging_.get() + i * record_bytes_);
  }

  absl::Status StartFetchers() {
    for (int i = 0; i < options_.num_fetchers && options_.records; ++i) {
      ASSIGN_OR_RETURN(std::thread fetcher, StartThread([this] { Fetch(); }));
      fetchers_.push_back(std::move(fetcher));
    }
    return absl::OkStatus();
  }

  ~GrpcLink() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      for (auto& [id, record] : records_) {
        if (record->context != nullptr) record->context->TryCancel();
      }
      changed_.notify_all();
    }
    for (std::thread& fetcher : fetchers_) fetcher.join();
    if (computing_ != nullptr) computing_->Cancel();
    if (!pinned_.empty()) ops_.UnpinHost(pinned_);
  }

  std::string name() const override { return "grpc"; }

  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t /*num_rows*/,
                                                std::span<const ActivatedExpert> uses, uint32_t /*helpers*/,
                                                Deadline deadline) override {
    SetStep(step);
    internal::v1::ExpertRequest request;
    Fill(step, layer, uses, &request);
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(deadline));
    internal::v1::ExpertPlan plan;
    RETURN_IF_ERROR(Annotate(FromGrpcStatus(cluster_.PlanExperts(&context, request, &plan)), "PlanExperts"));
    return PlacesFromProto(plan);
  }

  int64_t max_rows() const override { return max_rows_; }
  int64_t max_entries() const override { return max_entries_; }

  // The rows lie in the message that will carry them.
  std::span<float> HostRows(int64_t num_rows) override {
    std::string& rows = *compute_request_.mutable_rows();
    rows.resize(num_rows * options_.n_embd * sizeof(float));
    return {reinterpret_cast<float*>(rows.data()), rows.size() / sizeof(float)};
  }

  absl::Status StartCompute(const HostRequest& request) override {
    if (computing_ != nullptr) return FailedPrecondition("a host computation is running");
    SetStep(request.step);
    Fill(request.step, request.layer, request.uses, compute_request_.mutable_request());
    compute_request_.set_num_rows(request.num_rows);
    compute_request_.mutable_entry_rows()->Assign(request.entry_rows.begin(), request.entry_rows.end());
    num_entries_ = static_cast<int64_t>(request.entry_rows.size());
    computing_ = std::make_unique<Call>();
    cluster_.async()->ComputeExperts(&computing_->context, &compute_request_, &computing_->response,
                                     [call = computing_.get()](grpc::Status status) { call->SetDone(status); });
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) override {
    if (computing_ == nullptr) return FailedPrecondition("no host computation is running");
    const absl::Status done = computing_->Wait(deadline);
    contributions_ = std::move(*computing_->response.mutable_contributions());
    computing_ = nullptr;
    RETURN_IF_ERROR(Annotate(done, "ComputeExperts"));
    return ContributionsFrom(contributions_, num_entries_, options_.n_embd);
  }

  absl::StatusOr<std::span<const std::byte>> RecordInPlace(ExpertId) const override {
    return FailedPrecondition("experts come over gRPC, and the coordinator's memory is not shared with this worker");
  }

  absl::Status AskRecord(uint64_t step, ExpertId id) override {
    RETURN_IF_ERROR(options_.arena.OffsetOf(id.layer, id.expert).status());
    SetStep(step);
    const std::lock_guard lock(mutex_);
    if (fetchers_.empty()) return FailedPrecondition("this link was made without records");
    const auto [place, is_new] = records_.try_emplace(id);
    if (!is_new) return absl::OkStatus();
    place->second = std::make_shared<Record>();
    place->second->id = id;
    wanted_.push_back(place->second);
    changed_.notify_all();
    return absl::OkStatus();
  }

  bool RecordHere(ExpertId id) override {
    const std::lock_guard lock(mutex_);
    const auto found = records_.find(id);
    return found == records_.end() || found->second->done;
  }

  absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    const auto found = records_.find(id);
    if (found == records_.end()) return FailedPrecondition("expert %d of layer %d was not asked for", id.expert, id.layer);
    const std::shared_ptr<Record> record = found->second;
    if (!changed_.wait_until(lock, deadline.time(), [&] { return record->done; })) {
      return DeadlineExceeded("the record of expert %d of layer %d did not come in time", id.expert, id.layer);
    }
    RETURN_IF_ERROR(record->status);
    return std::span<const std::byte>(record->buffer, options_.arena.layer(id.layer).bytes);
  }

  void ReleaseRecord(ExpertId id) override {
    const std::lock_guard lock(mutex_);
    const auto found = records_.find(id);
    if (found == records_.end()) return;
    const std::shared_ptr<Record> record = std::move(found->second);
    records_.erase(found);
    record->released = true;
    std::erase(wanted_, record);
    if (record->context != nullptr) {
      record->context->TryCancel();  // its fetcher gives the buffer back
    } else if (record->buffer != nullptr) {
      free_buffers_.push_back(std::exchange(record->buffer, nullptr));
    }
    changed_.notify_all();
  }

 private:
  // A record that was asked for; guarded by mutex_, the bytes of its buffer excepted.
  struct Record {
    ExpertId id;
    std::byte* buffer = nullptr;
    grpc::ClientContext* context = nullptr;  // while it is coming
    bool done = false;
    bool released = false;
    absl::Status status;
  };

  // A unary call that is running.
  struct Call {
    grpc::ClientContext context;
    internal::v1::ComputeExpertsResponse response;
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    grpc::Status status;

    void SetDone(const grpc::Status& result) {
      const std::lock_guard lock(mutex);
      done = true;
      status = result;
      changed.notify_all();
    }
    // The call is over when this returns, whatever it says: at the deadline it is cancelled.
    absl::Status Wait(Deadline deadline) {
      std::unique_lock lock(mutex);
      if (changed.wait_until(lock, deadline.time(), [&] { return done; })) return FromGrpcStatus(status);
      lock.unlock();
      Cancel();
      return DeadlineExceeded("no answer in time");
    }
    void Cancel() {
      context.TryCancel();
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return done; });
    }
  };

  void Fill(uint64_t step, int64_t layer, std::span<const ActivatedExpert> uses, internal::v1::ExpertRequest* request) const {
    request->Clear();
    request->set_worker_id(options_.worker_id);
    request->set_incarnation(options_.incarnation.value());
    request->set_step(step);
    request->set_layer(layer);
    for (const ActivatedExpert& use : uses) {
      internal::v1::ActivatedExpert* const out = request->add_uses();
      out->set_expert(use.expert);
      out->set_tokens(use.tokens);
      out->set_resident(use.resident == 1);
      out->set_coming(use.resident == kComing);
    }
  }

  void SetStep(uint64_t step) {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }

  // One fetcher: takes the next wanted record when a buffer is free.
  void Fetch() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || (!wanted_.empty() && !free_buffers_.empty()); });
      if (stopping_) return;
      const std::shared_ptr<Record> record = std::move(wanted_.front());
      wanted_.pop_front();
      record->buffer = free_buffers_.front();
      free_buffers_.pop_front();
      absl::Status status;
      for (int attempt = 0; attempt < kMaxFetchAttempts; ++attempt) {
        grpc::ClientContext context;
        record->context = &context;
        const uint64_t step = step_;
        lock.unlock();
        status = FetchInto(context, step, record->id, record->buffer);
        lock.lock();
        record->context = nullptr;
        // A later step of this worker may have overtaken the request, which made it stale on arrival.
        if (status.code() != absl::StatusCode::kAborted || step_ == step || record->released || stopping_) break;
      }
      record->status = status;
      record->done = true;
      if (record->released) free_buffers_.push_back(std::exchange(record->buffer, nullptr));
      changed_.notify_all();
    }
  }

  absl::Status FetchInto(grpc::ClientContext& context, uint64_t step, ExpertId id, std::byte* buffer) {
    context.set_deadline(RpcDeadline(kFetchTimeout));
    internal::v1::ExpertRequest request;
    const ActivatedExpert use = {.expert = id.expert, .tokens = 1};
    Fill(step, id.layer, {&use, 1}, &request);
    RecordAssembler assembler(step, id, {buffer, static_cast<size_t>(options_.arena.layer(id.layer).bytes)});
    const auto stream = cluster_.FetchExperts(&context, request);
    internal::v1::ExpertRecordChunk chunk;
    absl::Status assembled;
    while (assembled.ok() && stream->Read(&chunk)) assembled = assembler.Add(chunk);
    if (!assembled.ok()) context.TryCancel();
    const grpc::Status ended = stream->Finish();
    RETURN_IF_ERROR(Annotate(assembled, "FetchExperts"));
    RETURN_IF_ERROR(Annotate(FromGrpcStatus(ended), "FetchExperts"));
    return assembler.Finish();
  }

  struct FreeAligned {
    void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{kRecordAlignment}); }
  };

  const GrpcLinkOptions options_;
  internal::v1::Cluster::StubInterface& cluster_;
  Ops& ops_;
  int64_t max_rows_ = 0, max_entries_ = 0;

  internal::v1::ComputeExpertsRequest compute_request_;
  std::unique_ptr<Call> computing_;
  std::string contributions_;
  int64_t num_entries_ = 0;  // of the computation that is running

  int64_t record_bytes_ = 0;
  std::unique_ptr<std::byte[], FreeAligned> staging_;
  std::span<const std::byte> pinned_;
  std::vector<std::thread> fetchers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  uint64_t step_ = 0;
  std::map<ExpertId, std::shared_ptr<Record>> records_;
  std::deque<std::shared_ptr<Record>> wanted_;  // in the order of asking
  std::deque<std::byte*> free_buffers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectGrpcLink(const GrpcLinkOptions& options,
                                                            internal::v1::Cluster::StubInterface* cluster, Ops* ops) {
  if (options.n_embd < 1 || options.max_rows < 1 || options.max_entries < 1) {
    return InvalidArgument("n_embd, max_rows and max_entries are %d, %d and %d, want at least 1", options.n_embd,
                           options.max_rows, options.max_entries);
  }
  auto link = std::make_unique<GrpcLink>(options, cluster, ops);
  RETURN_IF_ERROR(link->StartFetchers());
  return std::unique_ptr<ExpertLink>(std::move(link));
}

}  // namespace ferry
