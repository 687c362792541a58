#include "coordinator/wire_bounds.h"

#include "ferry/v1/generate.pb.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

absl::Status Check(const std::string& message, int max_fields) {
  return CheckWireBounds(message, *v1::GenerateRequest::descriptor(), {.max_fields = max_fields});
}

TEST(CheckWireBounds, CountsTheFieldsOfAllLevels) {
  v1::GenerateRequest request;
  request.set_text("Once");
  request.add_stop("a");
  request.add_stop("b");
  request.mutable_sampling()->set_seed(7);
  (*request.mutable_sampling()->mutable_logit_bias())[5] = 1;  // an entry, its key and its value
  const std::string message = request.SerializeAsString();
  EXPECT_OK(Check(message, 8));
  EXPECT_THAT(Check(message, 7), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 7 fields")));
}

TEST(CheckWireBounds, APackedListIsOneField) {
  v1::GenerateRequest request;
  for (int i = 0; i < 100000; ++i) request.mutable_tokens()->add_ids(5);
  EXPECT_OK(Check(request.SerializeAsString(), 2));
}

TEST(CheckWireBounds, CountsTheNumbersOfPackedListsWhenAsked) {
  v1::GenerateRequest request;
  for (const uint32_t id : {5u, 300u, 70000u}) request.mutable_tokens()->add_ids(id);  // of one, two and three bytes
  request.add_stop_token_ids(7);
  const auto check = [&](int64_t numbers) {
    return CheckWireBounds(request.SerializeAsString(), *request.descriptor(), {.max_fields = 10, .max_packed_numbers = numbers});
  };
  EXPECT_OK(check(4));
  EXPECT_THAT(check(3), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 3 numbers")));
}

TEST(CheckWireBounds, RefusesManyEmptyStringsAndUnknownFields) {
  std::string stops, unknown;
  for (int i = 0; i < 100000; ++i) stops += std::string("\x2a\x00", 2), unknown += "\xf8\x01\x01";
  EXPECT_THAT(Check(stops, 65536), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Check(unknown, 65536), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(CheckWireBounds, RefusesWhatIsNoMessage) {
  for (const std::string& bad : {std::string("\x0a\x05"
                                             "abc"),
                                 std::string("\x0a"), std::string("\x00\x00", 2), std::string("\x0b"),
                                 std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), std::string("\x0d\x01")}) {
    EXPECT_THAT(Check(bad, 100), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace ferry
