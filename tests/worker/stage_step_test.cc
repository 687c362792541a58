#include "worker/stage_step.h"

#include <cmath>
#include <ostream>
#include <string>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

constexpr StepLimits kLimits = {.max_rows = 64,
                                .num_slots = 4,
                                .num_blocks = 16,
                                .num_host_blocks = 8,
                                .num_host_states = 2,
                                .context_length = 512,
                                .vocab_size = 1000,
                                .first_stage = true,
                                .max_logits_bytes = 20000};

internal::v1::StepRequest GoodRequest() {
  internal::v1::StepRequest request;
  request.set_epoch(3);
  request.set_step(1);
  request.set_timeout_seconds(5);
  internal::v1::StepSequence* const sequence = request.add_sequences();
  sequence->set_slot(2);
  sequence->set_first_position(30);
  sequence->set_num_tokens(4);
  for (const uint32_t id : {1, 2, 3, 999}) sequence->add_token_ids(id);
  for (const uint32_t block : {5, 15}) sequence->add_blocks(block);
  internal::v1::LogitsWanted* const wanted = sequence->add_logits();
  wanted->set_offset(3);
  wanted->set_top_n(5);
  return request;
}

TEST(CheckStep, TakesWhatFits) {
  internal::v1::StepRequest request = GoodRequest();
  *request.add_sequences() = request.sequences(0);
  request.mutable_sequences(1)->set_slot(0);
  ASSERT_OK_AND_ASSIGN(const StageStep step, CheckStep(request, kLimits));
  EXPECT_EQ(step.num_rows(), 8);
  EXPECT_FALSE(step.forget_experts);
  request.set_forget_experts(true);
  EXPECT_TRUE(CheckStep(request, kLimits)->forget_experts);
  ASSERT_EQ(step.logits.size(), 2u);
  EXPECT_EQ(step.logits[1].row, 7);
  EXPECT_EQ(step.logits[1].target, -1);
  EXPECT_EQ(step.sequences[1].token_ids[3], 999);
  EXPECT_EQ(step.sequences[1].first_position, 30);
}

TEST(CheckStep, TakesMovesWhoseNumbersAreThere) {
  const auto check = [](internal::v1::CacheMove::Kind kind, uint32_t block, uint32_t from, uint32_t host, uint32_t slot,
                        uint32_t position) -> absl::Status {
    internal::v1::StepRequest request = GoodRequest();
    internal::v1::CacheMove* const move = request.add_moves();
    move->set_kind(kind);
    move->set_block(block);
    move->set_from_block(from);
    move->set_host(host);
    move->set_slot(slot);
    move->set_position(position);
    ASSIGN_OR_RETURN(const StageStep step, CheckStep(request, kLimits));
    const CacheMove& got = step.moves.at(0);
    EXPECT_EQ(static_cast<int>(got.kind), static_cast<int>(kind));
    EXPECT_EQ(got.position, position);
    return absl::OkStatus();
  };
  const auto is_bad = [](const std::string& words) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(words)); };
  using internal::v1::CacheMove;
  EXPECT_OK(check(CacheMove::SAVE_BLOCK, 15, 0, 7, 0, 0));
  EXPECT_THAT(check(CacheMove::SAVE_BLOCK, 16, 0, 7, 0, 0), is_bad("moves[0].block is 16, want less than 16"));
  EXPECT_THAT(check(CacheMove::LOAD_BLOCK, 15, 0, 8, 0, 0), is_bad("moves[0].host"));
  EXPECT_OK(check(CacheMove::COPY_BLOCK, 15, 14, 0, 0, 0));
  EXPECT_THAT(check(CacheMove::COPY_BLOCK, 15, 16, 0, 0, 0), is_bad("moves[0].from_block"));
  EXPECT_OK(check(CacheMove::SAVE_STATE, 0, 0, 1, 3, 512));
  EXPECT_THAT(check(CacheMove::SAVE_STATE, 0, 0, 2, 3, 512), is_bad("moves[0].host"));
  EXPECT_THAT(check(CacheMove::LOAD_STATE, 0, 0, 1, 4, 512), is_bad("moves[0].slot"));
  EXPECT_THAT(check(CacheMove::LOAD_STATE, 0, 0, 1, 3, 0), is_bad("moves[0].position is 0"));
  EXPECT_THAT(check(CacheMove::LOAD_STATE, 0, 0, 1, 3, 513), is_bad("moves[0].position is 513"));
  EXPECT_THAT(check(static_cast<CacheMove::Kind>(5), 0, 0, 0, 0, 0), is_bad("moves[0].kind is 5"));
}

TEST(CheckStep, WantsTokenIdsOfTheFirstStageAlone) {
  internal::v1::StepRequest request = GoodRequest();
  request.mutable_sequences(0)->clear_token_ids();
  EXPECT_THAT(CheckStep(request, kLimits), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sequences[0].token_ids")));
  StepLimits later = kLimits;
  later.first_stage = false;
  EXPECT_OK(CheckStep(request, later));
}

struct SpoiltStep {
  const char* name;
  void (*spoil)(internal::v1::StepRequest&);
  const char* message;
};
void PrintTo(const SpoiltStep& spoilt, std::ostream* out) { *out << spoilt.name; }

class CheckStepRefuses : public testing::TestWithParam<SpoiltStep> {};

TEST_P(CheckStepRefuses, NamingTheField) {
  internal::v1::StepRequest request = GoodRequest();
  GetParam().spoil(request);
  EXPECT_THAT(CheckStep(request, kLimits), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, CheckStepRefuses,
    testing::Values(
        SpoiltStep{"NoSequences", [](internal::v1::StepRequest& r) { r.clear_sequences(); }, "sequences has 0 entries"},
        SpoiltStep{"MoreSequencesThanSlots",
                   [](internal::v1::StepRequest& r) {
                     for (int i = 0; i < 4; ++i) *r.add_sequences() = r.sequences(0);
                   },
                   "sequences has 5 entries"},
        SpoiltStep{"SlotOutOfRange", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_slot(4); },
                   "sequences[0].slot is 4"},
        SpoiltStep{"SlotOfMinusOne", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_slot(UINT32_MAX); },
                   "sequences[0].slot"},
        SpoiltStep{"SlotTwice", [](internal::v1::StepRequest& r) { *r.add_sequences() = r.sequences(0); },
                   "sequences[1].slot is 2"},
        SpoiltStep{"NoRows", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_num_tokens(0); }, "num_tokens is 0"},
        SpoiltStep{"TooManyRows", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_num_tokens(65); },
                   "num_tokens is 65"},
        SpoiltStep{"RowsThatOverflow", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_num_tokens(UINT32_MAX); },
                   "num_tokens"},
        SpoiltStep{"BeyondTheContext", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_first_position(509); },
                   "first_position is 509"},
        SpoiltStep{"PositionThatOverflows",
                   [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_first_position(UINT32_MAX); },
                   "first_position"},
        SpoiltStep{"TooFewBlocks", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->mutable_blocks()->RemoveLast(); },
                   "blocks has 1 entries, want 2"},
        SpoiltStep{"TooManyBlocks",
                   [](internal::v1::StepRequest& r) {
                     for (int i = 0; i < 16; ++i) r.mutable_sequences(0)->add_blocks(i);
                   },
                   "blocks has 18 entries"},
        SpoiltStep{"BlockOutOfRange", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_blocks(1, 16); },
                   "blocks is 16"},
        SpoiltStep{"BlockTwice", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_blocks(1, 5); },
                   "holds block 5 twice"},
        SpoiltStep{"TooFewTokenIds",
                   [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->mutable_token_ids()->RemoveLast(); },
                   "token_ids has 3 entries, want num_tokens, 4"},
        SpoiltStep{"TokenIdOutOfRange", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->set_token_ids(0, 1000); },
                   "token_ids is 1000"},
        SpoiltStep{"LogitsOfARowThatIsNotThere",
                   [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->mutable_logits(0)->set_offset(4); },
                   "logits.offset is 4"},
        SpoiltStep{"LogitsOutOfOrder", [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->add_logits()->set_offset(3); },
                   "logits.offset is 3 after 3"},
        SpoiltStep{"TargetOutOfRange",
                   [](internal::v1::StepRequest& r) { r.mutable_sequences(0)->mutable_logits(0)->set_target(1000); },
                   "logits.target is 1000"},
        SpoiltStep{"MoreLogitsThanAMessageHolds",
                   [](internal::v1::StepRequest& r) {
                     r.mutable_sequences(0)->clear_logits();
                     for (int i = 0; i < 4; ++i) {
                       internal::v1::LogitsWanted* const wanted = r.mutable_sequences(0)->add_logits();
                       wanted->set_offset(i);
                       wanted->set_top_n(UINT32_MAX);
                     }
                   },
                   "logits.top_n"},
        SpoiltStep{"NoTime", [](internal::v1::StepRequest& r) { r.set_timeout_seconds(0); }, "timeout_seconds"},
        SpoiltStep{"TimeBelowATick", [](internal::v1::StepRequest& r) { r.set_timeout_seconds(1e-300); }, "timeout_seconds"},
        SpoiltStep{"TimeThatIsNaN", [](internal::v1::StepRequest& r) { r.set_timeout_seconds(NAN); }, "timeout_seconds"},
        SpoiltStep{"TooMuchTime", [](internal::v1::StepRequest& r) { r.set_timeout_seconds(1e9); }, "timeout_seconds"}),
    [](const testing::TestParamInfo<SpoiltStep>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ferry
