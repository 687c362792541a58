#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "worker/expert_call.h"
#include "worker/expert_link.h"
#include "worker/record_fetchers.h"

namespace ferry {
namespace {

constexpr absl::Duration kRecordPatience = absl::Seconds(60);
constexpr absl::Duration kRowsPatience = absl::Seconds(30);  // for the rows of a computation

// One record at a time. One that is not wanted any more comes to its end, since the next one follows on the same connection.
class DataRecords final : public RecordSource {
 public:
  explicit DataRecords(const DataLinkOptions& options) : call_(options.address, options.identity, options.words) {}

  absl::Status Fetch(uint64_t step, ExpertId id, std::span<std::byte> buffer) override {
    const Deadline deadline = Deadline::In(kRecordPatience);
    const ExpertRequest request = {
        .step = step, .layer = id.layer, .num_rows = 1, .uses = {{.expert = id.expert, .tokens = 1}}, .entry_rows = {}};
    RETURN_IF_ERROR(call_.Ask(WireKind::kRecord, request, {}, deadline));
    return call_.Answer(buffer, deadline);
  }
  void GiveUp() override {}
  void Stop() override { call_.Stop(); }

 private:
  ExpertCall call_;
};

class DataLink final : public FetchingLink {
 public:
  DataLink(const DataLinkOptions& options, Ops* ops)
      : options_(options),
        ops_(*ops),
        plans_(options.address, options.identity, options.words),
        computations_(options.address, options.identity, options.words) {}

  absl::Status Start(Deadline deadline) {
    RETURN_IF_ERROR(plans_.Connect(deadline));
    if (!options_.records) return absl::OkStatus();
    std::vector<std::unique_ptr<RecordSource>> sources;
    for (int i = 0; i < options_.num_fetchers; ++i) sources.push_back(std::make_unique<DataRecords>(options_));
    ASSIGN_OR_RETURN(fetchers_, RecordFetchers::Start(&options_.arena, &ops_, options_.num_buffers, std::move(sources)));
    return absl::OkStatus();
  }

  std::string name() const override { return "tcp"; }

  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                std::span<const ActivatedExpert> uses, uint32_t /*helpers*/,
                                                Deadline deadline) override {
    SetStep(step);
    const ExpertRequest request = {.step = step,
                                   .layer = static_cast<int32_t>(layer),
                                   .num_rows = static_cast<int32_t>(num_rows),
                                   .uses = {uses.begin(), uses.end()},
                                   .entry_rows = {}};
    RETURN_IF_ERROR(plans_.Ask(WireKind::kPlan, request, {}, deadline));
    std::vector<ExpertPlace> places(uses.size());
    RETURN_IF_ERROR(plans_.Answer(std::as_writable_bytes(std::span(places)), deadline));
    return places;  // the caller checks them (CheckPlaces)
  }

  int64_t max_rows() const override { return options_.words.shape.max_rows; }
  int64_t max_entries() const override { return options_.words.shape.max_entries; }
  std::span<float> HostRows(int64_t num_rows) override {
    rows_.resize(num_rows * options_.words.shape.n_embd);
    return rows_;
  }

  absl::Status StartCompute(const HostRequest& request) override {
    if (computing_) return FailedPrecondition("a host computation is running");
    SetStep(request.step);
    const ExpertRequest compute = {.kind = ExpertRequestKind::kCompute,
                                   .step = request.step,
                                   .layer = request.layer,
                                   .num_rows = request.num_rows,
                                   .uses = {request.uses.begin(), request.uses.end()},
                                   .entry_rows = {request.entry_rows.begin(), request.entry_rows.end()}};
    RETURN_IF_ERROR(computations_.Ask(WireKind::kCompute, compute, rows_, Deadline::In(kRowsPatience)));
    contributions_.resize(request.entry_rows.size() * options_.words.shape.n_embd);
    computing_ = true;
    return absl::OkStatus();
  }
  absl::StatusOr<ExchangeCost> MeasureExchange(Deadline deadline) override {
    const auto probe = [&](int64_t rows) -> absl::StatusOr<double> {
      const ExpertRequest nothing = {
          .num_rows = static_cast<int32_t>(rows), .uses = {}, .entry_rows = std::vector<int32_t>(static_cast<size_t>(rows))};
      contributions_.resize(HostRows(rows).size());
      const Stopwatch asked;
      RETURN_IF_ERROR(computations_.Ask(WireKind::kProbe, nothing, rows_, deadline));
      RETURN_IF_ERROR(computations_.Answer(std::as_writable_bytes(std::span(contributions_)), deadline));
      return asked.Seconds();
    };
    RETURN_IF_ERROR(computations_.Connect(deadline));
    return ferry::MeasureExchange(std::min(max_rows(), max_entries()), probe);
  }
  absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) override {
    if (!computing_) return FailedPrecondition("no host computation is running");
    computing_ = false;
    RETURN_IF_ERROR(computations_.Answer(std::as_writable_bytes(std::span(contributions_)), deadline));
    return std::span<const float>(contributions_);
  }

 private:
  const DataLinkOptions options_;
  Ops& ops_;
  ExpertCall plans_, computations_;  // a plan may be asked for while a computation runs
  std::vector<float> rows_, contributions_;
  bool computing_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectDataLink(const DataLinkOptions& options, Ops* ops, Deadline deadline) {
  auto link = std::make_unique<DataLink>(options, ops);
  RETURN_IF_ERROR(link->Start(deadline));
  return std::unique_ptr<ExpertLink>(std::move(link));
}

}  // namespace ferry
