#include "worker/stage.h"

#include <map>
#include <set>
#include <utility>

#include "common/deadline.h"
#include "tests/testing/source_path.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

using testing::HasSubstr;

// Models are made once: only the stages differ from test to test.
std::vector<float> Expected(int64_t num_tokens, const std::string& kind = "cpu") {
  TinyPipeline pipeline(&Model(), 1, nullptr, kind);
  return pipeline.Prompt(Tokens(Model(), num_tokens)).value();
}

int64_t Slots(int64_t count) { return count * Model().layout.max_record_bytes(); }

class StageOnBackend : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, StageOnBackend, testing::Values("cpu", "reference"));

TEST_P(StageOnBackend, GivesTheSameLogitsWhereverTheExpertsAreComputed) {
  const std::vector<float> expected = Expected(100, GetParam());
  for (const int64_t slots : {1, 3, 8, 32}) {
    for (const ExpertRule force : {ExpertRule::kAny, ExpertRule::kHost, ExpertRule::kDevice}) {
      TinyPipeline pipeline(
          &Model(), 1,
          [&](StageOptions& options) {
            options.expert_slot_bytes = Slots(slots);
            options.experts.force = force;
          },
          GetParam());
      ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100)));
      EXPECT_EQ(logits, expected) << slots << " slots, division " << static_cast<int>(force);
    }
  }
}

TEST(Stage, GivesTheSameLogitsForAnyNumberOfStages) {
  const std::vector<float> expected = Expected(100);
  for (const int stages : {2, 3, 4}) {
    TinyPipeline pipeline(&Model(), stages);
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100)));
    EXPECT_EQ(logits, expected) << stages << " stages";
  }
}

TEST(Stage, GivesTheSameLogitsWithoutOoae) {
  const std::vector<float> expected = Expected(60);
  for (const int64_t slots : {3, 5, 32}) {
    TinyPipeline pipeline(&Model(), 2, [&](StageOptions& options) {
      options.expert_slot_bytes = Slots(slots);
      options.experts.ooae = false;
    });
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 60), /*rows_a_step=*/20));
    EXPECT_EQ(logits, expected) << slots << " slots";
    EXPECT_EQ(pipeline.link().num_computes, 0) << "nothing goes to the host";
  }
}

// 170 tokens go around the ring of the sliding layers, which holds 64, more than twice.
TEST(Stage, GivesTheSameLogitsForAPromptInOneStepOrSeveral) {
  const std::vector<float> expected = Expected(170);
  for (const int64_t rows_a_step : {1, 7, 24, 25, 64, 169}) {
    TinyPipeline pipeline(&Model(), 1);
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 170), rows_a_step));
    EXPECT_EQ(logits, expected) << rows_a_step << " rows a step";
  }
}

TEST_P(StageOnBackend, KeepsKeysAndValuesInTypesOfTheirOwn) {
  std::map<std::pair<DType, DType>, std::vector<float>> logits;
  for (const DType keys : {DType::kF16, DType::kQ8_0}) {
    for (const DType values : {DType::kF16, DType::kQ8_0}) {
      const auto types = [&](StageOptions& options) { options.kv.key_type = keys, options.kv.value_type = values; };
      TinyPipeline whole(&Model(), 1, types, GetParam()), parts(&Model(), 2, types, GetParam());
      ASSERT_OK_AND_ASSIGN(logits[std::pair(keys, values)], whole.Prompt(Tokens(Model(), 90)));
      ASSERT_OK_AND_ASSIGN(const std::vector<float> in_parts, parts.Prompt(Tokens(Model(), 90), /*rows_a_step=*/25));
      EXPECT_EQ(in_parts, logits[std::pair(keys, values)]) << NameOf(keys) << ", " << NameOf(values);
    }
  }
  std::set<std::vector<float>> different;
  for (const auto& [types, row] : logits) different.insert(row);
  EXPECT_EQ(different.size(), 4u) << "each plane is rounded by its own type";
}

TEST(Stage, RefusesATypeOfCacheThatTheBackendDoesNotKeep) {
  std::unique_ptr<Ops> ops = CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}).value();
  StageOptions options = TinyStageOptions(Model(), 0, 1);
  options.kv.value_type = DType::kF32;
  EXPECT_THAT(KvCache::Create(ops.get(), options.model, 0, 1, options.kv, options.micro_batch_rows),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("KV cache: cache.values is of type F32")));
}

TEST(Stage, GivesASequenceTheSameLogitsAloneAndAmongOthers) {
  const std::vector<int32_t> one = Tokens(Model(), 90, 1), two = Tokens(Model(), 50, 2), three = Tokens(Model(), 31, 3);
  TinyPipeline alone(&Model(), 2);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected_one, alone.Prompt(one, 256, 0));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected_two, alone.Prompt(two, 256, 1));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected_three, alone.Prompt(three, 256, 2));

  TinyPipeline together(&Model(), 2, [](StageOptions& options) { options.expert_slot_bytes = Slots(5); });
  // Two prompts, the second one shorter by its last token, which then decodes beside a third prompt.
  const std::vector<int32_t> most_of_two(two.begin(), two.end() - 1);
  ASSERT_OK_AND_ASSIGN(const auto first, together.Run({{.slot = 2, .position = 0, .tokens = one},
                                                       {.slot = 0, .position = 0, .tokens = most_of_two}}));
  ASSERT_OK_AND_ASSIGN(const auto second, together.Run({{.slot = 0, .position = 49, .tokens = {two.back()}},
                                                        {.slot = 3, .position = 0, .tokens = three}}));
  EXPECT_EQ(first[0], expected_one);
  EXPECT_EQ(second[0], expected_two);
  EXPECT_EQ(second[1], expected_three);
}

TEST(Stage, GivesTheSameLogitsWhenTheHostTakesItsShareInPieces) {
  const std::vector<float> expected = Expected(80);
  TinyPipeline pipeline(&Model(), 1);
  pipeline.link().row_capacity = 9;
  pipeline.link().entry_capacity = 14;
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 80)));
  EXPECT_EQ(logits, expected);
}

TEST(Stage, ReadsEachExpertOnceAPassOnTheHost) {
  TinyPipeline pipeline(&Model(), 1);
  pipeline.link().entry_capacity = 80;  // 160 assignments: more than one request, each expert in one of them
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 80)));
  EXPECT_GT(pipeline.link().num_computes, Model().config.num_layers);
  for (const auto& [id, times] : pipeline.link().computed) EXPECT_EQ(times, 1) << "layer " << id.layer << " expert " << id.expert;
}

TEST(Stage, CopiesEachExpertAtMostOnceAPass) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(3);
    options.experts.force = ExpertRule::kDevice;
  });
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100)));
  const std::set<ExpertId> distinct(pipeline.link().asked.begin(), pipeline.link().asked.end());
  EXPECT_EQ(distinct.size(), pipeline.link().asked.size());
  EXPECT_TRUE(pipeline.link().held.empty()) << "all records were given back";
}

TEST(Stage, CopiesNothingASecondTimeWhenAllExpertsHaveSlots) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(32);
    options.experts.force = ExpertRule::kDevice;
  });
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100)));
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100), 256, /*slot=*/1));
  EXPECT_EQ(pipeline.counters()[1].copies(), 0u);
  EXPECT_EQ(pipeline.counters()[1].resident(), pipeline.counters()[1].activated());
}

TEST(Stage, ReadsExpertsWhereTheyLieWithoutCopyingOrAsking) {
  const std::vector<float> expected = Expected(80);
  TinyPipeline pipeline(&Model(), 2, [](StageOptions& options) { options.experts.in_place = true; });
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 80)));
  EXPECT_EQ(logits, expected);
  EXPECT_EQ(pipeline.link().num_computes + pipeline.link().num_plans, 0);
  EXPECT_TRUE(pipeline.link().asked.empty());
  EXPECT_EQ(pipeline.counters()[0].resident(), pipeline.counters()[0].activated());
}

TEST(Stage, FindsNothingResidentAfterItsExpertsWereForgotten) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(32);
    options.experts.force = ExpertRule::kDevice;
  });
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, pipeline.Prompt(Tokens(Model(), 100)));
  ASSERT_OK_AND_ASSIGN(const auto logits,
                       pipeline.Run({{.forget_experts = true, .slot = 1, .position = 0, .tokens = Tokens(Model(), 100)}}));
  EXPECT_EQ(pipeline.counters()[1].resident(), 0u);
  EXPECT_EQ(pipeline.counters()[1].shipped(), pipeline.counters()[1].activated());
  EXPECT_EQ(logits[0], expected);
}

TEST(Stage, ShipsNothingOnceItsSlotsAreFilled) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(32); });
  ASSERT_OK_AND_ASSIGN(const int64_t filled, pipeline.stage(0).FillSlots([](int64_t, int64_t all) { return all == 32; }));
  EXPECT_EQ(filled, 32);
  ASSERT_OK(pipeline.stage(0).MeasureLink(absl::Milliseconds(1)));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100)));
  EXPECT_EQ(pipeline.counters()[0].resident(), pipeline.counters()[0].activated());
  EXPECT_EQ(pipeline.counters()[0].copies(), 0u);
  EXPECT_EQ(logits, Expected(100));
}

TEST(Stage, FillsNoSlotsThatCannotHoldAll) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(31); });
  EXPECT_EQ(pipeline.stage(0).FillSlots([](int64_t, int64_t) { return true; }).value(), 0);
  EXPECT_TRUE(pipeline.link().asked.empty());
}

TEST(Stage, FillsNoSlotsForLayersThatARuleKeepsOnTheHost) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(24);
    options.experts.rules = {ExpertRule::kAny, ExpertRule::kHost, ExpertRule::kAny, ExpertRule::kAny};
  });
  EXPECT_EQ(pipeline.stage(0).FillSlots([](int64_t, int64_t) { return true; }).value(), 24);
  for (const ExpertId id : pipeline.link().asked) EXPECT_NE(id.layer, 1);
}

TEST(Stage, MeasuresItsOwnProducts) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(6); });
  ASSERT_OK(pipeline.stage(0).MeasureLink(absl::Milliseconds(1)));
  ASSERT_OK_AND_ASSIGN(const ExpertRates rates, pipeline.stage(0).MeasureExperts());
  EXPECT_GT(rates.flops_per_second, 0);
  EXPECT_GT(rates.read_bytes_per_second, 0);
  TinyPipeline without(&Model(), 1);
  EXPECT_EQ(without.stage(0).MeasureExperts().value(), ExpertRates());
  EXPECT_EQ(without.stage(0).MeasureLink(absl::Milliseconds(1))->bytes, 0);
}

TEST(Stage, CountsEveryActivatedExpertInOnePlace) {
  TinyPipeline pipeline(&Model(), 2, [](StageOptions& options) { options.expert_slot_bytes = Slots(6); });
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100), /*rows_a_step=*/30));
  for (int i = 0; i < 12; ++i) ASSERT_OK(pipeline.Run({{.slot = 0, .position = 100 + i, .tokens = {i}}}));
  uint64_t resident = 0;
  for (const v1::ExpertCounters& counters : pipeline.counters()) {
    EXPECT_EQ(counters.activated(), counters.resident() + counters.shipped() + counters.on_host());
    resident += counters.resident();
  }
  EXPECT_GT(pipeline.link().num_plans, 0);
  EXPECT_GT(resident, 0u);
}

TEST(Stage, AsksForNoPlanInDecodeAndKeepsHotExperts) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(8); });
  uint64_t resident = 0;
  for (int i = 0; i < 400 && resident == 0; ++i) {
    ASSERT_OK(pipeline.Run({{.slot = 0, .position = i, .tokens = {7}}}));
    resident = pipeline.counters().back().resident();
    absl::SleepFor(absl::Milliseconds(1));  // copies run in the background
  }
  EXPECT_EQ(pipeline.link().num_plans, 0);
  EXPECT_GT(resident, 0u);
}

TEST(Stage, CopiesALayerAheadOfItsRoutingOnceItKnowsWhatIsUsed) {
  // Fewer slots than a layer uses experts: never are all of them here, so that every layer asks for a plan.
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(5); });
  pipeline.link().place = [](const ActivatedExpert& use) { return use.resident ? ExpertPlace::kResident : ExpertPlace::kShip; };
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 200)));
  std::map<int64_t, int> ahead;  // records of a layer that were asked for before its plan
  pipeline.link().asked.clear();
  pipeline.link().on_plan = [&](int64_t layer) {
    for (const ExpertId id : pipeline.link().asked) ahead[layer] += id.layer == layer;
  };
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 200), 256, /*slot=*/1));
  EXPECT_GT(ahead[2] + ahead[3], 0);
  const v1::ExpertCounters& counters = pipeline.counters().back();
  EXPECT_EQ(counters.activated(), counters.resident() + counters.shipped() + counters.on_host());
  TinyPipeline plain(&Model(), 1);
  EXPECT_EQ(logits, plain.Prompt(Tokens(Model(), 200)).value());
}

// Two stages of two layers each: when rows are late, the second one's link is free.
TEST(Stage, CopiesForAllItsLayersWhileItWaitsForRows) {
  TinyPipeline pipeline(&Model(), 2, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(16);
    options.experts.force = ExpertRule::kDevice;
  });
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, pipeline.Prompt(Tokens(Model(), 100)));
  pipeline.link().asked.clear();
  const Deadline patience = Deadline::In(absl::Seconds(5));
  const auto asked_of = [&](int64_t layer) {
    return std::count_if(pipeline.link().asked.begin(), pipeline.link().asked.end(),
                         [&](ExpertId id) { return id.layer == layer; });
  };
  int64_t before_rows = 0;
  pipeline.rows_come = [&] {
    before_rows = asked_of(3);
    return before_rows > 2 || patience.Passed();
  };
  ASSERT_OK_AND_ASSIGN(const auto logits,
                       pipeline.Run({{.forget_experts = true, .slot = 1, .position = 0, .tokens = Tokens(Model(), 100)}}));
  EXPECT_GT(before_rows, 2) << "of the last layer, whose rows were not there yet";
  EXPECT_EQ(logits[0], expected);
  EXPECT_EQ(pipeline.counters().back().resident(), 0u) << "experts copied for this step count as shipped";
}

TEST(Stage, PushesOutNothingHotterWhileItWaitsForRows) {
  TinyPipeline pipeline(&Model(), 2, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(6);
    options.experts.force = ExpertRule::kDevice;
  });
  for (int i = 0; i < 3; ++i) ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100), 256, i));
  const uint64_t bytes = pipeline.counters().back().bytes_shipped();
  const Deadline late = Deadline::In(absl::Milliseconds(50));
  pipeline.rows_come = [&] { return late.Passed(); };
  ASSERT_OK(pipeline.Prompt(Tokens(Model(), 100), 256, 3));
  EXPECT_LE(pipeline.counters().back().bytes_shipped(), bytes) << "all are equally hot, and none makes way for another";
}

TEST(Stage, NeverShipsWhatARuleKeepsOnTheHost) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(8);
    options.experts.rules = {ExpertRule::kAny, ExpertRule::kHost, ExpertRule::kDevice, ExpertRule::kAny};
  });
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100), /*rows_a_step=*/33));
  EXPECT_EQ(logits, Expected(100));
  for (const ExpertId id : pipeline.link().asked) EXPECT_NE(id.layer, 1);
  for (const auto& [id, times] : pipeline.link().computed) EXPECT_NE(id.layer, 2);
}

TEST(Stage, WorksThroughALinkThatHoldsFewRecordsAtOnce) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) {
    options.expert_slot_bytes = Slots(7);
    options.experts.force = ExpertRule::kDevice;
  });
  pipeline.link().max_records_here = 2;
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100), /*rows_a_step=*/40));
  EXPECT_EQ(logits, Expected(100));
}

TEST(Stage, GoesOnAfterAStepThatFailed) {
  for (const bool ship : {false, true}) {
    TinyPipeline pipeline(&Model(), 1, [&](StageOptions& options) {
      if (ship) options.expert_slot_bytes = Slots(4);
      if (ship) options.experts.force = ExpertRule::kDevice;
    });
    (ship ? pipeline.link().fail_record : pipeline.link().fail_compute) = DataLoss("spoilt");
    EXPECT_THAT(pipeline.Prompt(Tokens(Model(), 100)), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("spoilt")));
    pipeline.link().fail_record = pipeline.link().fail_compute = absl::OkStatus();
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(Tokens(Model(), 100)));
    EXPECT_EQ(logits, Expected(100));
  }
}

TEST(Stage, RefusesAPlanThatMakesNoSense) {
  TinyPipeline pipeline(&Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = Slots(4); });
  pipeline.link().place = [](const ActivatedExpert&) { return ExpertPlace::kResident; };
  EXPECT_THAT(pipeline.Prompt(Tokens(Model(), 30)), StatusIs(absl::StatusCode::kInternal, HasSubstr("resident")));
}

TEST(Stage, GivesUpWhenItIsStoppedOrLate) {
  TinyPipeline pipeline(&Model(), 1);
  const StageStep step = {.epoch = 1,
                          .step = 1,
                          .timeout = absl::Seconds(1),
                          .sequences = {{.slot = 0, .num_rows = 1, .token_ids = {1}, .blocks = {0}}},
                          .logits = {}};
  std::stop_source stop;
  EXPECT_THAT(pipeline.stage(0).Run(step, Deadline::In(absl::ZeroDuration()), nullptr, nullptr, stop.get_token()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  stop.request_stop();
  EXPECT_THAT(pipeline.stage(0).Run(step, Deadline::Never(), nullptr, nullptr, stop.get_token()),
              StatusIs(absl::StatusCode::kAborted));
}

absl::Status CreateWith(const std::function<void(StageOptions&)>& change) {
  const auto ops = MakeOps();
  FakeLink link(&Model(), ops.get());
  StageOptions options = TinyStageOptions(Model(), 0, 2);
  change(options);
  FileTensorSource source(Model(), 0, 2);
  return Stage::Create(ops.get(), options, source, &link).status();
}

TEST(Stage, RefusesWhatNeedsSlotsWithoutThem) {
  EXPECT_THAT(CreateWith([](StageOptions& options) { options.experts.ooae = false; }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--vram-experts")));
  EXPECT_THAT(CreateWith([](StageOptions& options) {
                options.experts.ooae = false;
                options.expert_slot_bytes = Slots(2);
              }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("at least 3")));
  EXPECT_THAT(CreateWith([](StageOptions& options) {
                options.experts.rules = {ExpertRule::kAny, ExpertRule::kDevice};
              }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--vram-experts")));
}

TEST(Stage, RefusesMoreMemoryThanThereIsBeforeItAllocates) {
  EXPECT_THAT(CreateWith([](StageOptions& options) { options.expert_slot_bytes = int64_t{1} << 60; }),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--vram-experts")));
  EXPECT_THAT(CreateWith([](StageOptions& options) { options.dense_bytes = int64_t{1} << 60; }),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("more workers")));
}

// Three gated delta nets before a layer of full attention.
const TinyModel& HybridModel() {
  static const auto* const model = [] {
    MakeModelOptions options = TinyModel::Options();
    options.architecture = "qwen35moe";
    options.yarn_factor = 1;
    options.rope_dims = 16;
    return TinyModel::Make(options).release();
  }();
  return *model;
}

TEST(StageWithStates, GivesTheSameLogitsHoweverAPromptIsCutOrDivided) {
  const std::vector<int32_t> tokens = Tokens(HybridModel(), 170);
  TinyPipeline whole(&HybridModel(), 1);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, whole.Prompt(tokens));
  for (const int64_t rows_a_step : {1, 7, 25, 64, 169}) {
    TinyPipeline pipeline(&HybridModel(), rows_a_step % 2 == 0 ? 3 : 1);
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, pipeline.Prompt(tokens, rows_a_step));
    EXPECT_EQ(logits, expected) << rows_a_step << " rows a step";
  }
}

TEST(StageWithStates, GivesASequenceTheSameLogitsAmongOthers) {
  const std::vector<int32_t> tokens = Tokens(HybridModel(), 40);
  TinyPipeline alone(&HybridModel(), 1);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, alone.Prompt(tokens));
  TinyPipeline pipeline(&HybridModel(), 2);
  ASSERT_OK(pipeline.Run({{.slot = 1, .tokens = {tokens.begin(), tokens.begin() + 15}}}));
  ASSERT_OK_AND_ASSIGN(const auto logits,
                       pipeline.Run({{.slot = 0, .tokens = Tokens(HybridModel(), 30, 2)},
                                     {.slot = 1, .position = 15, .tokens = {tokens.begin() + 15, tokens.end()}},
                                     {.slot = 3, .tokens = Tokens(HybridModel(), 9, 3)}}));
  EXPECT_EQ(logits[1], expected);
}

TEST(StageWithStates, GoesOnOnlyWhereItsStateIs) {
  constexpr absl::StatusCode kWrongState = absl::StatusCode::kFailedPrecondition;
  TinyPipeline pipeline(&HybridModel(), 1);
  const std::vector<int32_t> tokens = Tokens(HybridModel(), 20);
  EXPECT_THAT(pipeline.Run({{.position = 5, .tokens = tokens}}), StatusIs(kWrongState, HasSubstr("slot 0 has no state")));
  ASSERT_OK(pipeline.Prompt(tokens));
  EXPECT_THAT(pipeline.Run({{.position = 19, .tokens = tokens}}), StatusIs(kWrongState, HasSubstr("behind 20 tokens")));
  ASSERT_OK(pipeline.Run({{.position = 20, .tokens = tokens}}));
  // A step that failed leaves nobody knows what.
  pipeline.link().fail_compute = Unavailable("the host is away");
  EXPECT_THAT(pipeline.Run({{.position = 40, .tokens = tokens}}), StatusIs(absl::StatusCode::kUnavailable));
  pipeline.link().fail_compute = absl::OkStatus();
  EXPECT_THAT(pipeline.Run({{.position = 40, .tokens = tokens}}), StatusIs(kWrongState, HasSubstr("no state")));
  EXPECT_OK(pipeline.Prompt(tokens));
}

// ----------------------------------------------------------------------------------------------------- what steps move
// beforehand

struct MovesCase {
  const char* name;
  const TinyModel& (*model)();
  DType kv_type;
  int num_stages;
};

class StageMoves : public ::testing::TestWithParam<MovesCase> {
 protected:
  const TinyModel& model() { return GetParam().model(); }
  TinyPipeline MakePipeline() {
    return TinyPipeline(&model(), GetParam().num_stages, [](StageOptions& options) {
      options.kv.key_type = options.kv.value_type = GetParam().kv_type;
      options.kv.num_host_blocks = 8;
      options.kv.num_host_states = 2;
    });
  }
};

const TinyModel& LatentModel() {
  static const auto* const model = TinyModel::Open(SourcePath("tests/worker/testdata/deepseek2-v3-f32.gguf")).release();
  return *model;
}

// Puts a sequence into host memory, overwrites all that it left, and goes on with it in another slot and in other blocks.
TEST_P(StageMoves, ASequenceGoesOnFromHostMemoryBitForBit) {
  constexpr int64_t kFirst = 170;
  constexpr int32_t kFrom = 2, kTo = 1;
  const std::vector<int32_t> tokens = Tokens(model(), kFirst), more = Tokens(model(), 12, 5);
  TinyPipeline plain = MakePipeline();
  ASSERT_OK(plain.Prompt(tokens, 256, kFrom));
  ASSERT_OK_AND_ASSIGN(const auto expected, plain.Run({{.slot = kFrom, .position = kFirst, .tokens = more}}));

  TinyPipeline pipeline = MakePipeline();
  ASSERT_OK(pipeline.Prompt(tokens, 256, kFrom));
  const int32_t num_blocks = (kFirst + kKvBlockTokens - 1) / kKvBlockTokens;
  for (int32_t i = 0; i < num_blocks; ++i) {
    pipeline.moves.push_back({.kind = CacheMove::Kind::kSaveBlock, .block = TinyPipeline::BlockOf(kFrom, i), .host = 7 - i});
  }
  pipeline.moves.push_back({.kind = CacheMove::Kind::kSaveState, .host = 1, .slot = kFrom, .position = kFirst});
  for (const int32_t slot : {kFrom, kTo}) ASSERT_OK(pipeline.Prompt(Tokens(model(), 200, 7 + slot), 256, slot));
  for (int32_t i = 0; i < num_blocks; ++i) {
    pipeline.moves.push_back({.kind = CacheMove::Kind::kLoadBlock, .block = TinyPipeline::BlockOf(kTo, i), .host = 7 - i});
  }
  pipeline.moves.push_back({.kind = CacheMove::Kind::kLoadState, .host = 1, .slot = kTo, .position = kFirst});
  ASSERT_OK_AND_ASSIGN(const auto logits, pipeline.Run({{.slot = kTo, .position = kFirst, .tokens = more}}));
  EXPECT_EQ(logits, expected);
}

TEST_P(StageMoves, ACopiedBlockHasTheSameTokens) {
  if (model().config.keeps_states() || model().config.sliding_window() > 0) GTEST_SKIP() << "needs a state beside its blocks";
  const std::vector<int32_t> tokens = Tokens(model(), 50), more = Tokens(model(), 12, 5);
  TinyPipeline pipeline = MakePipeline();
  ASSERT_OK(pipeline.Prompt(tokens, 256, 0));
  ASSERT_OK_AND_ASSIGN(const auto expected, pipeline.Run({{.slot = 0, .position = 50, .tokens = more}}));
  for (const int32_t block : {0, 1}) {
    pipeline.moves.push_back({.kind = CacheMove::Kind::kCopyBlock,
                              .block = TinyPipeline::BlockOf(3, block),
                              .from_block = TinyPipeline::BlockOf(0, block)});
  }
  ASSERT_OK_AND_ASSIGN(const auto logits, pipeline.Run({{.slot = 3, .position = 50, .tokens = more}}));
  EXPECT_EQ(logits, expected);
}

INSTANTIATE_TEST_SUITE_P(, StageMoves,
                         ::testing::Values(MovesCase{"Sliding", &Model, DType::kF16, 1},
                                           MovesCase{"SlidingQ8", &Model, DType::kQ8_0, 2},
                                           MovesCase{"States", &HybridModel, DType::kF16, 2},
                                           MovesCase{"Latent", &LatentModel, DType::kF16, 1}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(StageWithStates, SavesNoStateThatItDoesNotHave) {
  TinyPipeline pipeline(&HybridModel(), 1, [](StageOptions& options) { options.kv.num_host_states = 1; });
  ASSERT_OK(pipeline.Prompt(Tokens(HybridModel(), 20)));
  pipeline.moves = {{.kind = CacheMove::Kind::kSaveState, .slot = 0, .position = 19}};
  EXPECT_THAT(pipeline.Prompt(Tokens(HybridModel(), 20)),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the state behind 19 tokens")));
}

TEST(Stage, RefusesARingThatIsShorterThanWindowAndMicroBatch) {
  EXPECT_THAT(CreateWith([](StageOptions& options) { options.kv.ring_blocks = 1; }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ring_blocks is 1, want at least 2")));
}

}  // namespace
}  // namespace ferry
