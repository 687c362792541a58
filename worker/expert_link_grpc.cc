#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "kernels/ops.h"
#include "worker/expert_answers.h"
#include "worker/expert_link.h"
#include "worker/record_assembler.h"
#include "worker/record_fetchers.h"

namespace ferry {
namespace {

constexpr int64_t kMaxCallBytes = kMaxMessageBytes / 2;
constexpr absl::Duration kFetchTimeout = absl::Seconds(60);

void Fill(const GrpcLinkOptions& options, uint64_t step, int64_t layer, std::span<const ActivatedExpert> uses,
          internal::v1::ExpertRequest* request) {
  request->Clear();
  request->set_worker_id(options.worker_id);
  request->set_incarnation(options.incarnation.value());
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

// One stream at a time.
class GrpcRecords final : public RecordSource {
 public:
  GrpcRecords(const GrpcLinkOptions& options, internal::v1::Cluster::StubInterface* cluster)
      : options_(options), cluster_(*cluster) {}

  absl::Status Fetch(uint64_t step, ExpertId id, std::span<std::byte> buffer) override {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(kFetchTimeout));
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return absl::CancelledError("the link is ending");
      context_ = &context;
    }
    const absl::Status status = FetchInto(context, step, id, buffer);
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
    return status;
  }
  void GiveUp() override {
    const std::lock_guard lock(mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }
  void Stop() override {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }

 private:
  absl::Status FetchInto(grpc::ClientContext& context, uint64_t step, ExpertId id, std::span<std::byte> buffer) {
    internal::v1::ExpertRequest request;
    const ActivatedExpert use = {.expert = id.expert, .tokens = 1};
    Fill(options_, step, id.layer, {&use, 1}, &request);
    RecordAssembler assembler(step, id, buffer);
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

  const GrpcLinkOptions& options_;
  internal::v1::Cluster::StubInterface& cluster_;
  std::mutex mutex_;  // guards what follows
  bool stopped_ = false;
  grpc::ClientContext* context_ = nullptr;  // of the fetch that runs
};

class GrpcLink final : public FetchingLink {
 public:
  GrpcLink(const GrpcLinkOptions& options, internal::v1::Cluster::StubInterface* cluster, Ops* ops)
      : options_(options), cluster_(*cluster), ops_(*ops) {
    const int64_t row_bytes = options.n_embd * static_cast<int64_t>(sizeof(float));
    max_rows_ = std::max<int64_t>(1, std::min(options.max_rows, kMaxCallBytes / row_bytes));
    max_entries_ = std::max<int64_t>(1, std::min(options.max_entries, kMaxCallBytes / row_bytes));
  }
  ~GrpcLink() override {
    fetchers_ = nullptr;  // its threads use the options and the stub
    if (computing_ != nullptr) computing_->Cancel();
  }

  absl::Status StartFetchers() {
    if (!options_.records) return absl::OkStatus();
    std::vector<std::unique_ptr<RecordSource>> sources;
    for (int i = 0; i < options_.num_fetchers; ++i) sources.push_back(std::make_unique<GrpcRecords>(options_, &cluster_));
    ASSIGN_OR_RETURN(fetchers_, RecordFetchers::Start(&options_.arena, &ops_, options_.num_buffers, std::move(sources)));
    return absl::OkStatus();
  }

  std::string name() const override { return "grpc"; }

  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                std::span<const ActivatedExpert> uses, uint32_t /*helpers*/,
                                                Deadline deadline) override {
    SetStep(step);
    internal::v1::ExpertRequest request;
    Fill(options_, step, layer, uses, &request);
    request.set_num_rows(static_cast<uint32_t>(num_rows));
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
    Fill(options_, request.step, request.layer, request.uses, compute_request_.mutable_request());
    compute_request_.set_num_rows(request.num_rows);
    compute_request_.mutable_entry_rows()->Assign(request.entry_rows.begin(), request.entry_rows.end());
    num_entries_ = static_cast<int64_t>(request.entry_rows.size());
    computing_ = std::make_unique<Call>();
    cluster_.async()->ComputeExperts(&computing_->context, &compute_request_, &computing_->response,
                                     [call = computing_.get()](grpc::Status status) { call->SetDone(status); });
    return absl::OkStatus();
  }

  absl::StatusOr<ExchangeCost> MeasureExchange(Deadline deadline) override {
    return ferry::MeasureExchange(std::min(max_rows_, max_entries_), [&](int64_t rows) -> absl::StatusOr<double> {
      internal::v1::ComputeExpertsRequest nothing;
      nothing.set_probe(true);
      nothing.mutable_rows()->resize(rows * options_.n_embd * sizeof(float));
      grpc::ClientContext context;
      context.set_deadline(RpcDeadline(deadline));
      internal::v1::ComputeExpertsResponse back;
      const Stopwatch asked;
      RETURN_IF_ERROR(Annotate(FromGrpcStatus(cluster_.ComputeExperts(&context, nothing, &back)), "ComputeExperts"));
      RETURN_IF_ERROR(ContributionsFrom(back.contributions(), rows, options_.n_embd).status());
      return asked.Seconds();
    });
  }
  absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) override {
    if (computing_ == nullptr) return FailedPrecondition("no host computation is running");
    const absl::Status done = computing_->Wait(deadline);
    contributions_ = std::move(*computing_->response.mutable_contributions());
    computing_ = nullptr;
    RETURN_IF_ERROR(Annotate(done, "ComputeExperts"));
    return ContributionsFrom(contributions_, num_entries_, options_.n_embd);
  }

 private:
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

  const GrpcLinkOptions options_;
  internal::v1::Cluster::StubInterface& cluster_;
  Ops& ops_;
  int64_t max_rows_ = 0, max_entries_ = 0;

  internal::v1::ComputeExpertsRequest compute_request_;
  std::unique_ptr<Call> computing_;
  std::string contributions_;
  int64_t num_entries_ = 0;  // of the computation that is running
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
