#include "worker/assignment.h"

#include <cmath>
#include <ostream>
#include <string>

#include "tests/testing/small_assignment.h"
#include "tests/testing/status_matchers.h"
#include "worker/worker_process.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

internal::v1::RegisterResponse Good() {
  internal::v1::RegisterResponse response;
  response.set_worker_id(1);
  response.set_num_workers(2);
  response.set_first_layer(2);
  response.set_end_layer(4);
  response.set_expert_transport("shm");
  response.set_mailbox_max_rows(64);
  response.set_mailbox_max_entries(128);
  response.set_heartbeat_interval_seconds(1);
  response.set_heartbeat_timeout_seconds(10);
  response.set_ooae(true);
  response.set_model(SmallModelHeader(4));
  DescribeSmallCache(response.mutable_cache());
  return response;
}

TEST(Assignment, HasThePlaceThatTheCoordinatorGave) {
  internal::v1::RegisterResponse response = Good();
  internal::v1::ExpertOverride* const rule = response.add_overrides();
  rule->set_layer(3);
  rule->set_place(internal::v1::ExpertOverride::HOST);
  ASSERT_OK_AND_ASSIGN(const Assignment assignment, AssignmentFromProto(response));
  EXPECT_EQ(assignment.first_layer, 2);
  EXPECT_EQ(assignment.end_layer, 4);
  EXPECT_EQ(assignment.arena.num_layers(), 4);
  EXPECT_EQ(assignment.arena.layer(0).down.dtype, DType::kQ8_0);
  EXPECT_TRUE(assignment.arena.layer(0).has_bias);
  EXPECT_THAT(assignment.rules, ElementsAre(ExpertRule::kAny, ExpertRule::kHost));
  EXPECT_EQ(assignment.mailbox, (MailboxShape{.n_embd = 64, .max_rows = 64, .max_entries = 128, .max_experts = 8}));
  EXPECT_EQ(assignment.kv.key_type, DType::kF16);
  EXPECT_EQ(assignment.kv.value_type, DType::kQ8_0);
  EXPECT_EQ(assignment.heartbeat_timeout, absl::Seconds(10));
}

// The model's header with one of the architecture's keys changed.
std::string WithKey(std::string_view key, uint32_t value) {
  return SmallModelHeader(4, [&](GgufWriter& writer) { writer.SetUint32("gpt-oss." + std::string(key), value); });
}

struct SpoiltAssignment {
  const char* name;
  void (*spoil)(internal::v1::RegisterResponse&);
  const char* message;
};
void PrintTo(const SpoiltAssignment& spoilt, std::ostream* out) { *out << spoilt.name; }

class AssignmentRefuses : public testing::TestWithParam<SpoiltAssignment> {};

TEST_P(AssignmentRefuses, NamingTheField) {
  internal::v1::RegisterResponse response = Good();
  GetParam().spoil(response);
  const absl::Status status = AssignmentFromProto(response).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

using R = internal::v1::RegisterResponse;
INSTANTIATE_TEST_SUITE_P(
    Fields, AssignmentRefuses,
    testing::Values(
        SpoiltAssignment{"NoModel", [](R& r) { r.set_model("GGUX"); }, "not a GGUF file"},
        SpoiltAssignment{"HugeModel", [](R& r) { r.set_model(std::string(4 << 20, 'x')); }, "model has 4194304 bytes"},
        SpoiltAssignment{
            "Architecture",
            [](R& r) { r.set_model(SmallModelHeader(4, [](GgufWriter& w) { w.SetString("general.architecture", "llama"); })); },
            "general.architecture"},
        SpoiltAssignment{"NoLayers", [](R& r) { r.set_first_layer(4); }, "first_layer is 4"},
        SpoiltAssignment{"LayersBeyondTheModel", [](R& r) { r.set_end_layer(5); }, "end_layer is 5"},
        SpoiltAssignment{"WorkerId", [](R& r) { r.set_worker_id(2); }, "worker_id is 2"},
        SpoiltAssignment{"TopK", [](R& r) { r.set_model(WithKey("expert_used_count", 9)); }, "expert_used_count"},
        SpoiltAssignment{"Heads", [](R& r) { r.set_model(WithKey("attention.head_count", 5)); }, "attention.head_count"},
        SpoiltAssignment{"Experts", [](R& r) { r.set_model(WithKey("expert_count", 5000)); }, "expert_count"},
        SpoiltAssignment{
            "ATensorLess",
            [](R& r) { r.set_model(SmallModelHeader(4, [](GgufWriter& w) { w.RemoveTensor("blk.1.attn_k.bias"); })); },
            "tensor 'blk.1.attn_k.bias' is missing"},
        SpoiltAssignment{"ATensorMore",
                         [](R& r) {
                           r.set_model(SmallModelHeader(4, [](GgufWriter& w) {
                             ASSERT_OK(w.AddTensor("blk.1.attn_q_norm.weight", DType::kF32, {32}, std::vector<std::byte>(128)));
                           }));
                         },
                         "tensor 'blk.1.attn_q_norm.weight' is none"},
        SpoiltAssignment{"ValueType", [](R& r) { r.mutable_cache()->set_kv_value_type(2); }, "kv_value_type"},
        SpoiltAssignment{"HugeCache", [](R& r) { r.mutable_cache()->set_num_blocks(INT32_MAX); }, "num_blocks"},
        SpoiltAssignment{"MailboxRows", [](R& r) { r.set_mailbox_max_rows(UINT64_MAX); }, "mailbox_max_rows"},
        SpoiltAssignment{"NoBlocks", [](R& r) { r.mutable_cache()->set_num_blocks(0); }, "cache.num_blocks is 0"},
        SpoiltAssignment{"NoRows", [](R& r) { r.mutable_cache()->set_max_batch_tokens(0); }, "cache.max_batch_tokens is 0"},
        SpoiltAssignment{"Transport", [](R& r) { r.set_expert_transport("nccl"); }, "expert_transport is 'nccl'"},
        SpoiltAssignment{"OverrideOfAnotherLayer", [](R& r) { r.add_overrides()->set_layer(1); },
                         "overrides.layer is 1, want 2 to 3"},
        SpoiltAssignment{"HeartbeatOfNaN", [](R& r) { r.set_heartbeat_interval_seconds(NAN); }, "heartbeat_interval_seconds"}),
    [](const testing::TestParamInfo<SpoiltAssignment>& info) { return std::string(info.param.name); });

TEST(ParseVramExperts, ReadsSizes) {
  EXPECT_TRUE(ParseVramExperts("auto")->automatic);
  EXPECT_EQ(ParseVramExperts("0")->bytes, 0);
  EXPECT_FALSE(ParseVramExperts("0")->automatic);
  EXPECT_EQ(ParseVramExperts("123")->bytes, 123);
  EXPECT_EQ(ParseVramExperts("4GiB")->bytes, int64_t{4} << 30);
  EXPECT_EQ(ParseVramExperts("512m")->bytes, int64_t{512} << 20);
  EXPECT_EQ(ParseVramExperts("4GB")->bytes, 4000000000);
  EXPECT_TRUE(ParseVramExperts("-1")->automatic);
  for (const char* const bad : {"", "GiB", "-2", "1.5GiB", "99999999999GiB", "4 GiB", "auto "}) {
    EXPECT_THAT(ParseVramExperts(bad), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

}  // namespace
}  // namespace ferry
