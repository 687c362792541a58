#include "common/rpc/detailed_status.h"

#include "common/grpc_status.h"
#include "google/rpc/details.pb.h"

namespace ferry {
namespace {

constexpr char kTypes[] = "type.googleapis.com/";
constexpr size_t kMaxReasonBytes = 63;  // as ErrorInfo bounds it
constexpr int64_t kMaxRetrySeconds = 24 * 3600;

template <typename Message>
void AddDetail(const Message& message, google::rpc::Status* status) {
  google::protobuf::Any* const detail = status->add_details();
  detail->set_type_url(kTypes + Message::descriptor()->full_name());
  message.SerializeToString(detail->mutable_value());
}

template <typename Message>
bool Read(const google::protobuf::Any& detail, Message* message) {
  return detail.type_url() == kTypes + Message::descriptor()->full_name() && message->ParseFromString(detail.value());
}

}  // namespace

grpc::Status ToDetailedGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(static_cast<int32_t>(status.code()));
  details.set_message(std::string(status.message()));
  google::rpc::ErrorInfo info;
  info.set_reason(ReasonOf(status));
  info.set_domain(kErrorDomain);
  AddDetail(info, &details);
  if (const std::optional<absl::Duration> delay = RetryOf(status)) {
    google::rpc::RetryInfo retry;
    absl::Duration rest;
    retry.mutable_retry_delay()->set_seconds(absl::IDivDuration(*delay, absl::Seconds(1), &rest));
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
    AddDetail(retry, &details);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()), details.SerializeAsString());
}

absl::Status FromDetailedGrpcStatus(const grpc::Status& status) {
  absl::Status result = FromGrpcStatus(status);
  google::rpc::Status details;
  if (result.ok() || !details.ParseFromString(status.error_details())) return result;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (Read(detail, &info) && info.domain() == kErrorDomain && info.reason().size() <= kMaxReasonBytes) {
      result = WithReason(std::move(result), info.reason());
    } else if (Read(detail, &retry)) {
      const auto& delay = retry.retry_delay();
      if (delay.seconds() < 0 || delay.seconds() > kMaxRetrySeconds || delay.nanos() < 0) continue;
      result = WithRetry(std::move(result), absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos()));
    }
  }
  return result;
}

}  // namespace ferry
