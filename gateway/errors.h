#pragma once

// Errors as HTTP answers, in the form that each API's clients read.

#include <string>

#include "common/status.h"
#include "gateway/http/message.h"
#include "gateway/json/json.h"

namespace ferry {

enum class ApiForm {
  kOpenAi,     // {"error": {"message", "type", "param", "code"}}
  kAnthropic,  // {"type": "error", "error": {"type", "message"}}
};

// By the path of a request: /v1/messages and the paths below it are Anthropic's.
ApiForm FormOf(std::string_view path);

// 400 for InvalidArgument, 401, 403, 404, 413 for OutOfRange (a request that is too large for the engine), 429 for a full queue,
// 503 while no model is served or the gateway ends, 504 for a deadline, else 500.
int HttpStatusOf(const absl::Status& status);

// `field`: of the request, may be empty.
Json ErrorBody(ApiForm form, int http_status, const std::string& message, const std::string& field);
Json ErrorBody(ApiForm form, const absl::Status& status);

// With Retry-After where a later try may succeed (429, 503), and WWW-Authenticate with a 401.
HttpResponse ErrorResponse(ApiForm form, int http_status, const std::string& message, const std::string& field = "");
// Of an error that is not InvalidArgument the client is told the message only where it is meant for people: internal ones are
// logged instead.
HttpResponse ErrorResponse(ApiForm form, const absl::Status& status);

}  // namespace ferry
