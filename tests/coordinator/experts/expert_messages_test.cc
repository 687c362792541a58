#include "coordinator/experts/expert_messages.h"

#include <cstring>
#include <limits>

#include "coordinator/experts/expert_record_stream.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"
#include "xxhash.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kWidth = 4;

internal::v1::ComputeExpertsRequest TwoRows() {
  internal::v1::ComputeExpertsRequest proto;
  proto.mutable_request()->set_worker_id(1);
  proto.mutable_request()->set_incarnation(9);
  proto.mutable_request()->set_step(3);
  proto.mutable_request()->set_layer(2);
  for (const auto& [expert, tokens] : {std::pair(3, 1), std::pair(5, 2)}) {
    internal::v1::ActivatedExpert* const use = proto.mutable_request()->add_uses();
    use->set_expert(expert);
    use->set_tokens(tokens);
  }
  proto.set_num_rows(2);
  proto.set_rows(std::string(2 * kWidth * sizeof(float), '\0'));
  for (const int row : {0, 0, 1}) proto.add_entry_rows(row);
  return proto;
}

TEST(ExpertMessages, ConvertsAComputeRequest) {
  ASSERT_OK_AND_ASSIGN(const ComputeRequest compute, ComputeRequestFromProto(TwoRows(), kWidth));
  EXPECT_EQ(compute.request.kind, ExpertRequestKind::kCompute);
  EXPECT_EQ(compute.request.incarnation, 9u);
  EXPECT_EQ(compute.request.step, 3u);
  EXPECT_EQ(compute.request.layer, 2);
  EXPECT_EQ(compute.request.num_rows, 2);
  EXPECT_THAT(compute.request.uses,
              ElementsAre(ActivatedExpert{.expert = 3, .tokens = 1}, ActivatedExpert{.expert = 5, .tokens = 2}));
  EXPECT_THAT(compute.request.entry_rows, ElementsAre(0, 0, 1));
  EXPECT_EQ(compute.rows.size(), 8u);
  EXPECT_EQ(compute.contributions.size(), 12u);
}

TEST(ExpertMessages, APlanHasTheStepsRowsAndAFetchHasNone) {
  internal::v1::ExpertRequest proto = TwoRows().request();
  ASSERT_OK_AND_ASSIGN(const ExpertRequest fetch, ExpertRequestFromProto(proto, ExpertRequestKind::kPlan));
  EXPECT_EQ(fetch.num_rows, std::numeric_limits<int32_t>::max()) << "which bounds no tokens";
  proto.set_num_rows(700);
  ASSERT_OK_AND_ASSIGN(const ExpertRequest plan, ExpertRequestFromProto(proto, ExpertRequestKind::kPlan));
  EXPECT_EQ(plan.num_rows, 700);
  proto.set_num_rows(~0u);
  EXPECT_THAT(ExpertRequestFromProto(proto, ExpertRequestKind::kPlan),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_rows")));
}

TEST(ExpertMessages, RefusesNumbersThatDoNotFit) {
  internal::v1::ComputeExpertsRequest proto = TwoRows();
  proto.mutable_request()->mutable_uses(0)->set_expert(3062453784u);  // -1232513512 as an int32
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expert")));
  proto = TwoRows();
  proto.mutable_request()->mutable_uses(0)->set_tokens(1u << 31);
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokens")));
  proto = TwoRows();
  proto.mutable_request()->set_layer(~0u);
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
  proto = TwoRows();
  proto.set_entry_rows(1, ~0u);
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("entry_rows")));
}

TEST(ExpertMessages, RefusesRowsOfAnotherSize) {
  internal::v1::ComputeExpertsRequest proto = TwoRows();
  proto.mutable_rows()->pop_back();
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows has 31 bytes")));
  proto = TwoRows();
  proto.set_num_rows(~0u);
  EXPECT_THAT(ComputeRequestFromProto(proto, kWidth), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows")));
}

TEST(ExpertMessages, RefusesAnAnswerLargerThanAMessage) {
  internal::v1::ComputeExpertsRequest proto = TwoRows();
  const int64_t width = 1 << 20;
  proto.set_num_rows(0);
  proto.clear_rows();
  for (int i = 0; i < 20; ++i) proto.add_entry_rows(0);
  EXPECT_THAT(ComputeRequestFromProto(proto, width), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("entry_rows")));
}

TEST(ExpertMessages, StreamsRecordsInChunksWithTheChecksumLast) {
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = 1, .pin = false}));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ExpertStore> store,
                       ExpertStore::Load(file, config, *pool, [](const LoadProgress&) {}));
  ExpertRequest request = {
      .step = 4, .layer = 1, .uses = {{.expert = 2, .tokens = 1}, {.expert = 30, .tokens = 1}}, .entry_rows = {}};
  ExpertRecordStream stream(store.get(), request);
  internal::v1::ExpertRecordChunk chunk;
  for (const ActivatedExpert& use : request.uses) {
    ASSERT_OK_AND_ASSIGN(const std::span<const std::byte> record, store->Record(1, use.expert));
    std::string bytes;
    do {
      ASSERT_TRUE(stream.Next(&chunk).value());
      EXPECT_EQ(chunk.step(), 4u);
      EXPECT_EQ(chunk.layer(), 1u);
      EXPECT_EQ(chunk.expert(), static_cast<uint32_t>(use.expert));
      EXPECT_EQ(chunk.record_bytes(), record.size());
      EXPECT_EQ(chunk.offset(), bytes.size());
      bytes += chunk.data();
    } while (bytes.size() < record.size());
    EXPECT_EQ(std::memcmp(bytes.data(), record.data(), record.size()), 0);
    EXPECT_EQ(chunk.xxh3(), XXH3_64bits(record.data(), record.size()));
  }
  EXPECT_FALSE(stream.Next(&chunk).value());
}

TEST(ExpertMessages, TranslatesPlaces) {
  const internal::v1::ExpertPlan plan = ToProto({ExpertPlace::kHost, ExpertPlace::kShip, ExpertPlace::kResident});
  EXPECT_THAT(plan.places(),
              ElementsAre(internal::v1::ExpertPlan::HOST, internal::v1::ExpertPlan::SHIP, internal::v1::ExpertPlan::RESIDENT));
}

}  // namespace
}  // namespace ferry
