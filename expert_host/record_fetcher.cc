#include "expert_host/record_fetcher.h"

#include <grpcpp/client_context.h>

#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/rpc_deadline.h"
#include "worker/record_assembler.h"

namespace ferry {
namespace {

constexpr absl::Duration kRetryPause = absl::Milliseconds(300);
constexpr absl::Duration kStreamPatience = absl::Seconds(30);
constexpr double kSlowestNetwork = 1e6;  // bytes a second

bool IsWorthAnotherTry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsDataLoss(status) || absl::IsInternal(status);
}

}  // namespace

absl::Status RecordFetcher::FetchSome(int64_t layer, std::span<const ExpertStore::RecordToFill> records, size_t* filled) {
  internal::v1::StreamExpertRecordsRequest request;
  request.set_model_fingerprint(fingerprint_);
  request.set_layer(static_cast<uint32_t>(layer));
  double bytes = 0;
  for (const ExpertStore::RecordToFill& wanted : records) {
    request.add_experts(static_cast<uint32_t>(wanted.expert));
    bytes += static_cast<double>(wanted.record.size());
  }
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(kStreamPatience + absl::Seconds(bytes / kSlowestNetwork)));
  const auto stream = cluster_.StreamExpertRecords(&context, request);
  internal::v1::ExpertRecordChunk chunk;
  for (const ExpertStore::RecordToFill& wanted : records) {
    RecordAssembler record(/*step=*/0, {.layer = static_cast<int32_t>(layer), .expert = static_cast<int32_t>(wanted.expert)},
                           wanted.record);
    absl::Status status;
    while (status.ok() && !record.Finish().ok()) {
      if (cancelled_()) status = Cancelled("asked to end");
      if (status.ok() && !stream->Read(&chunk)) {
        status = FromGrpcStatus(stream->Finish());
        return status.ok() ? record.Finish() : status;
      }
      if (status.ok()) status = record.Add(chunk);
    }
    if (!status.ok()) {
      context.TryCancel();
      return status;
    }
    ++*filled;
  }
  context.TryCancel();  // there is nothing behind the last
  return absl::OkStatus();
}

absl::Status RecordFetcher::Fetch(int64_t layer, std::span<const ExpertStore::RecordToFill> records) {
  Stopwatch since_record;
  while (!records.empty()) {
    size_t filled = 0;
    const absl::Status status = FetchSome(layer, records, &filled);
    records = records.subspan(filled);
    if (filled > 0) since_record.Restart();
    if (status.ok()) continue;
    if (!IsWorthAnotherTry(status) || since_record.Elapsed() > patience_) {
      return Annotate(status, absl::StrFormat("the records of layer %d", layer));
    }
    spdlog::warn("the records of layer {} stopped coming, {} are missing: {}", layer, records.size(), Escaped(status.ToString()));
    absl::SleepFor(kRetryPause);
  }
  return absl::OkStatus();
}

}  // namespace ferry
