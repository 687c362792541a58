#include "common/error_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ferry {
namespace {

constexpr char kReason[] = "ferry.v1/reason", kRetry[] = "ferry.v1/retry";  // payloads; a delay as text, in milliseconds

std::optional<std::string> PayloadOf(const absl::Status& status, const char* name) {
  const absl::optional<absl::Cord> payload = status.GetPayload(name);
  if (!payload.has_value()) return std::nullopt;
  return std::string(*payload);
}

}  // namespace

absl::Status WithReason(absl::Status status, const std::string& reason) {
  status.SetPayload(kReason, absl::Cord(reason));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  if (std::optional<std::string> reason = PayloadOf(status, kReason)) return *reason;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_REQUEST";
    case absl::StatusCode::kUnauthenticated:
      return "KEY_NEEDED";
    case absl::StatusCode::kPermissionDenied:
      return "ROLE_NEEDED";
    case absl::StatusCode::kResourceExhausted:
      return "QUEUE_FULL";
    case absl::StatusCode::kUnavailable:
      return "NOT_SERVING";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_PASSED";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    default:
      return "SERVER_FAILED";
  }
}

absl::Status WithRetry(absl::Status status, absl::Duration delay) {
  status.SetPayload(kRetry, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(delay))));
  return status;
}

std::optional<absl::Duration> RetryOf(const absl::Status& status) {
  int64_t milliseconds = 0;
  const std::optional<std::string> payload = PayloadOf(status, kRetry);
  if (payload && absl::SimpleAtoi(*payload, &milliseconds)) return absl::Milliseconds(milliseconds);
  if (status.code() == absl::StatusCode::kResourceExhausted) return absl::Seconds(1);
  if (status.code() == absl::StatusCode::kUnavailable) return absl::Seconds(5);
  return std::nullopt;
}

}  // namespace ferry
