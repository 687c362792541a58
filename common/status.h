#pragma once

// Status helpers: formatted errors, and the two macros by which errors travel.
//
// The meaning of each code in all of Ferry:
//   InvalidArgument    the caller's input or shapes          ResourceExhausted  memory or a queue is full
//   FailedPrecondition wrong state                           Aborted            an earlier incarnation or step
//   Unavailable        a peer is lost; try again             DeadlineExceeded   a wait ended
//   Unimplemented      a model or option Ferry does not know Internal           our bug, or CUDA's, with its detail

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"

namespace ferry {

#define FERRY_DEFINE_ERROR(Name)                                                    \
  template <typename... Args>                                                       \
  absl::Status Name(const absl::FormatSpec<Args...>& format, const Args&... args) { \
    return absl::Name##Error(absl::StrFormat(format, args...));                     \
  }
FERRY_DEFINE_ERROR(InvalidArgument)
FERRY_DEFINE_ERROR(ResourceExhausted)
FERRY_DEFINE_ERROR(FailedPrecondition)
FERRY_DEFINE_ERROR(Aborted)
FERRY_DEFINE_ERROR(Unavailable)
FERRY_DEFINE_ERROR(DeadlineExceeded)
FERRY_DEFINE_ERROR(Unimplemented)
FERRY_DEFINE_ERROR(Internal)
FERRY_DEFINE_ERROR(NotFound)
FERRY_DEFINE_ERROR(Cancelled)
FERRY_DEFINE_ERROR(DataLoss)
#undef FERRY_DEFINE_ERROR

// The same code with "context: " before the message.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrFormat("%s: %s", context, status.message()));
}

}  // namespace ferry

#define FERRY_CONCAT_INNER(a, b) a##b
#define FERRY_CONCAT(a, b) FERRY_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                                        \
  do {                                                                                     \
    if (absl::Status ferry_status = (expression); !ferry_status.ok()) return ferry_status; \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  FERRY_ASSIGN_OR_RETURN_IMPL(FERRY_CONCAT(ferry_statusor_, __LINE__), declaration, expression)
#define FERRY_ASSIGN_OR_RETURN_IMPL(statusor, declaration, expression) \
  auto statusor = (expression);                                        \
  if (!statusor.ok()) return std::move(statusor).status();             \
  declaration = *std::move(statusor)
