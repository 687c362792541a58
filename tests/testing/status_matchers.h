#pragma once

// gMock matchers for Status and StatusOr, which Debian's Abseil does not ship.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/status.h"

namespace ferry {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& statusor) {
  return statusor.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}
MATCHER_P(StatusIs, code, "has the code " + absl::StatusCodeToString(code)) {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).code() == code;
}
// The code, and a matcher on the message: StatusIs(code, HasSubstr("blk.3")).
MATCHER_P2(StatusIs, code, message, "has the code " + absl::StatusCodeToString(code) + " and a matching message") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).code() == code &&
         testing::ExplainMatchResult(message, std::string(StatusOf(arg).message()), result_listener);
}

}  // namespace ferry

#define ASSERT_OK(expression) ASSERT_THAT(expression, ::ferry::IsOk())
#define EXPECT_OK(expression) EXPECT_THAT(expression, ::ferry::IsOk())
#define ASSERT_OK_AND_ASSIGN(declaration, expression) \
  FERRY_ASSERT_OK_AND_ASSIGN_IMPL(FERRY_CONCAT(ferry_test_statusor_, __LINE__), declaration, expression)
#define FERRY_ASSERT_OK_AND_ASSIGN_IMPL(statusor, declaration, expression) \
  auto statusor = (expression);                                            \
  ASSERT_THAT(statusor, ::ferry::IsOk());                                  \
  declaration = *std::move(statusor)
