#include "worker/step_trace.h"

#include "tests/testing/status_matchers.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

using Queue = TimelineSpan::Queue;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Field;
using ::testing::IsEmpty;

absl::Time At(int64_t milliseconds) { return absl::UnixEpoch() + absl::Milliseconds(milliseconds); }

TEST(CountTimeline, WorkIsWhatTheComputeQueueDidWithoutItsWaits) {
  v1::ExpertCounters counters;
  counters.set_copy_wait_seconds(7);  // as the host saw it
  CountTimeline({{"MatMul", Queue::kCompute, At(0), At(10)},
                 {kWaitSpan, Queue::kCompute, At(10), At(30)},
                 {"CopyAsync", Queue::kCopy, At(5), At(30)},
                 {"ExpertMlp", Queue::kCompute, At(30), At(45)}},
                0.05, &counters);
  EXPECT_DOUBLE_EQ(counters.device_seconds(), 0.025);
  EXPECT_DOUBLE_EQ(counters.copy_wait_seconds(), 0.020);
  EXPECT_DOUBLE_EQ(counters.copy_busy_seconds(), 0.025);
  EXPECT_DOUBLE_EQ(counters.timed_seconds(), 0.05);
}

TEST(CountTimeline, AnOperationInsideAnotherCountsOnce) {
  v1::ExpertCounters counters;
  CountTimeline({{"RopeAndStore", Queue::kCompute, At(0), At(10)}, {"Upload", Queue::kCompute, At(2), At(12)}}, 0.02, &counters);
  EXPECT_DOUBLE_EQ(counters.device_seconds(), 0.012);
}

TEST(StepTrace, AStepThatIsTracedTellsWhatItsThreadAndItsQueuesDid) {
  static const auto* const model = TinyModel::Make().release();
  TinyPipeline pipeline(model, 1, [](StageOptions& options) {
    options.expert_slot_bytes = 3 * model->layout.max_record_bytes();
    options.experts.force = ExpertRule::kDevice;
  });
  pipeline.Trace();
  ASSERT_OK(pipeline.Prompt(Tokens(*model, 40)));
  const auto span = [](TraceSpan::Track track, const char* name) {
    return AllOf(Field(&TraceSpan::track, track), Field(&TraceSpan::name, testing::StrEq(name)));
  };
  EXPECT_THAT(pipeline.spans(), Contains(AllOf(span(TraceSpan::Track::kHost, "attention"), Field(&TraceSpan::layer, 1))));
  EXPECT_THAT(pipeline.spans(), Contains(span(TraceSpan::Track::kHost, "route")));
  EXPECT_THAT(pipeline.spans(), Contains(span(TraceSpan::Track::kCompute, "ExpertMlp")));
  EXPECT_THAT(pipeline.spans(), Contains(span(TraceSpan::Track::kCopy, "CopyAsync")));
  for (const TraceSpan& one : pipeline.spans()) EXPECT_LE(one.begin, one.end) << one.name;
}

TEST(StepTrace, AStepThatIsNotTracedTellsNothingButCounts) {
  static const auto* const model = TinyModel::Make().release();
  TinyPipeline pipeline(model, 1);
  ASSERT_OK(pipeline.Prompt(Tokens(*model, 40)));
  EXPECT_THAT(pipeline.spans(), IsEmpty());
  const v1::ExpertCounters& counters = pipeline.counters().front();
  EXPECT_GT(counters.device_seconds(), 0) << "40 rows are enough to be timed";
  EXPECT_LE(counters.device_seconds(), counters.timed_seconds());
}

}  // namespace
}  // namespace ferry
