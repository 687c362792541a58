// `ferry status` beside a server that runs, and messages of the API as JSON.

#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/message_json.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Status, TellsWhatRunsToPeopleAndPrograms) {
  ModelOptions options;
  options.model = kDemoModel;
  options.workers = 2;
  options.backend = "cpu";
  options.alias = "our-model";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  const std::string status = "status --server " + client->address();
  const Output text = Ferry(status);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("serving, up "));
  EXPECT_THAT(text.out, HasSubstr("our-model: gpt-oss, 6 layers"));
  EXPECT_THAT(text.out, HasSubstr("worker 1  ready"));
  const Output output = Ferry(status + " --json");
  const nlohmann::json json = nlohmann::json::parse(output.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << output.out << output.err;
  EXPECT_EQ(json["server"]["state"], "serving");
  EXPECT_EQ(json["server"]["workers"].size(), 2u);
  EXPECT_EQ(json["server"]["workers"][1]["end_layer"], 6);
  EXPECT_EQ(json["model"]["name"], "our-model");
  const Output live = Ferry(status + " --live", "timeout 12");
  EXPECT_THAT(live.out, HasSubstr("generated ones a second"));
  EXPECT_THAT(live.out, Not(HasSubstr("\033"))) << "no escape codes in a pipe";
}

TEST(Status, ShowsTheRatesThatStepsHaveShownBesideThoseMeasured) {
  ModelOptions options;
  options.model = kDemoModel;
  options.backend = "cpu";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  const std::string status = "status --server " + client->address();
  const std::string in_steps = "by the last steps, and so in plans: ";
  const Output before = Ferry(status);
  EXPECT_THAT(before.out, HasSubstr("rates     experts on the host "));
  EXPECT_THAT(before.out, Not(HasSubstr(in_steps)));
  for (int i = 0; i < 5; ++i) {
    proto::GenerateRequest request;
    request.set_text(std::to_string(i));
    for (int word = 0; word < 100; ++word) *request.mutable_text() += " and once upon a time";
    request.set_max_tokens(1);
    ASSERT_OK(client->Generate(request, [](const proto::GenerateResponse&) { return true; }));
  }
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client->ServerInfo());
  EXPECT_GE(info.host_experts().slowdown_of_large_steps(), 0.124) << "a correction is bounded";
  EXPECT_LE(info.host_experts().slowdown_of_large_steps(), 8.001);
  const Output after = Ferry(status);
  EXPECT_THAT(after.out, HasSubstr("rates     experts on the host "));
  EXPECT_THAT(after.out, ContainsRegex("with 4, 16, 64 and 256 rows an expert [0-9]+, [0-9]+, [0-9]+ and [0-9]+ GFLOP/s"));
  EXPECT_THAT(after.out, HasSubstr(in_steps));
  EXPECT_THAT(after.out, HasSubstr(" in larger steps"));
}

TEST(MessageJson, HasNumbersAndLeavesOutMessagesThatAreNotSet) {
  proto::Finish finish;
  finish.set_reason(proto::Finish::STOP);
  finish.set_seed(18446744073709551615u);
  finish.set_decode_seconds(0.5);
  finish.set_matched_stop("x");
  EXPECT_EQ(JsonOf(finish).dump(),
            R"({"reason":"STOP","prompt_tokens":0,"cached_prompt_tokens":0,"generated_tokens":0,"seed":18446744073709551615,)"
            R"("queue_seconds":0.0,"prefill_seconds":0.0,"decode_seconds":0.5,"resumed":0,"matched_stop":"x","suspended":0})");
  proto::TokenIds ids;
  ids.add_ids(3);
  EXPECT_EQ(JsonOf(ids).dump(), R"({"ids":[3]})");
}

}  // namespace
}  // namespace ferry
