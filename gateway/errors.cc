#include "gateway/errors.h"

#include <cmath>
#include <optional>

#include "common/error_details.h"
#include "common/log.h"

namespace ferry {
namespace {

constexpr char kRetryBusy[] = "1", kRetryUnavailable[] = "5";  // seconds, where the coordinator says nothing

const char* OpenAiTypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* AnthropicTypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    case 504:
      return "timeout_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

// What clients may read of an error.
std::string MessageOf(const absl::Status& status) {
  if (HttpStatusOf(status) != 500) return std::string(status.message());
  spdlog::error("a request failed: {}", status.ToString());
  return "the server failed; its log says why";
}

}  // namespace

ApiForm FormOf(std::string_view path) {
  const std::string_view messages = "/v1/messages";
  const bool anthropic = path.starts_with(messages) && (path.size() == messages.size() || path[messages.size()] == '/');
  return anthropic ? ApiForm::kAnthropic : ApiForm::kOpenAi;
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kOutOfRange:
      return 413;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

Json ErrorBody(ApiForm form, int http_status, const std::string& message, const std::string& field) {
  if (form == ApiForm::kAnthropic) {
    return {{"type", "error"}, {"error", {{"type", AnthropicTypeOf(http_status)}, {"message", message}}}};
  }
  return {{"error",
           {{"message", message},
            {"type", OpenAiTypeOf(http_status)},
            {"param", field.empty() ? Json() : Json(field)},
            {"code", http_status}}}};
}

Json ErrorBody(ApiForm form, const absl::Status& status) {
  return ErrorBody(form, HttpStatusOf(status), MessageOf(status), FieldOf(status));
}

HttpResponse ErrorResponse(ApiForm form, int http_status, const std::string& message, const std::string& field) {
  HttpResponse response = {.status = http_status, .body = Dump(ErrorBody(form, http_status, message, field))};
  if (http_status == 429) response.headers.push_back({"Retry-After", kRetryBusy});
  if (http_status == 503) response.headers.push_back({"Retry-After", kRetryUnavailable});
  if (http_status == 401) response.headers.push_back({"WWW-Authenticate", "Bearer"});
  return response;
}

HttpResponse ErrorResponse(ApiForm form, const absl::Status& status) {
  HttpResponse response = ErrorResponse(form, HttpStatusOf(status), MessageOf(status), FieldOf(status));
  const std::optional<absl::Duration> delay = RetryOf(status);
  for (auto& [name, value] : response.headers) {
    if (name == "Retry-After" && delay) value = std::to_string(static_cast<int64_t>(std::ceil(absl::ToDoubleSeconds(*delay))));
  }
  return response;
}

}  // namespace ferry
