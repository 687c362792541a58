#include "worker/expert_cache.h"

#include "common/deadline.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

constexpr ExpertCache::Purpose kPass = ExpertCache::Purpose::kThisStep;
constexpr ExpertCache::Purpose kKeep = ExpertCache::Purpose::kLaterSteps;

class ExpertCacheTest : public testing::Test {
 protected:
  void Make(int64_t num_slots) {
    cache_ = ExpertCache::Create(ops_.get(), &link_, &Model().layout, 0, 4, num_slots).value();
    cache_->BeginStep(1, &counters_);
  }
  bool Fetch(ExpertId id, ExpertCache::Purpose purpose = kPass) {
    return cache_->Fetch(id, purpose, Deadline::In(absl::Seconds(5))).value();
  }
  // The expert's record out of its slot, as compute would read it.
  std::vector<std::byte> Use(ExpertId id) {
    cache_->Pin(id);
    const absl::StatusOr<const std::byte*> record = cache_->Acquire(id, Deadline::In(absl::Seconds(5)));
    EXPECT_OK(record);
    if (!record.ok()) return {};
    std::vector<std::byte> bytes(*record, *record + Model().layout.layer(id.layer).bytes);
    cache_->Release(id, ops_->MarkCompute().value());
    return bytes;
  }
  std::vector<std::byte> Expected(ExpertId id) {
    const auto record = Model().Record(id.layer, id.expert);
    return {record.begin(), record.end()};
  }

  std::unique_ptr<Ops> ops_ = MakeOps();
  FakeLink link_{&Model(), ops_.get()};
  v1::ExpertCounters counters_;
  std::unique_ptr<ExpertCache> cache_;
};

TEST_F(ExpertCacheTest, GivesTheRecordThatWasFetched) {
  Make(3);
  for (const ExpertId id : {ExpertId{0, 1}, ExpertId{3, 7}, ExpertId{1, 0}, ExpertId{2, 2}}) {
    ASSERT_TRUE(Fetch(id));
    EXPECT_EQ(Use(id), Expected(id)) << "layer " << id.layer << " expert " << id.expert;
  }
  EXPECT_EQ(counters_.copies(), 4u);
  EXPECT_EQ(counters_.shipped(), 4u);
}

TEST(ExpertCacheSlots, AreCountedByRecordsOfLayersWithExperts) {
  const auto model =
      TinyModel::Make({.architecture = "glm4moe", .layers = 3, .yarn_factor = 1, .dense_layers = 2, .sigmoid = true});
  const std::unique_ptr<Ops> ops = MakeOps();
  FakeLink link(model.get(), ops.get());
  EXPECT_EQ(ExpertCache::SlotsIn(int64_t{1} << 30, model->layout, 0, 3), 8);
  EXPECT_EQ(ExpertCache::SlotsIn(int64_t{1} << 30, model->layout, 0, 2), 0) << "these layers have none";
  const auto cache = ExpertCache::Create(ops.get(), &link, &model->layout, 0, 3, 8).value();
  EXPECT_TRUE(cache->HoldsAll());
  ASSERT_OK_AND_ASSIGN(const ExpertCache::Measurement measured,
                       cache->MeasureLink(absl::Milliseconds(1), Deadline::In(absl::Seconds(10))));
  EXPECT_GT(measured.bytes, 0);
}

TEST_F(ExpertCacheTest, CopiesWhatIsThereNoSecondTime) {
  Make(2);
  ASSERT_TRUE(Fetch({0, 1}));
  Use({0, 1});
  ASSERT_TRUE(Fetch({0, 1}));
  Use({0, 1});
  EXPECT_EQ(counters_.copies(), 1u);
  EXPECT_EQ(counters_.shipped(), 1u);
  EXPECT_EQ(counters_.resident(), 1u);
}

TEST_F(ExpertCacheTest, CopiesNeighboursAtOnce) {
  Make(8);
  for (const ExpertId id : {ExpertId{0, 1}, ExpertId{0, 2}, ExpertId{0, 3}, ExpertId{0, 5}, ExpertId{1, 6}})
    ASSERT_TRUE(Fetch(id));
  ASSERT_OK(cache_->StartReadyCopies());
  EXPECT_EQ(counters_.copies(), 3u) << "1 to 3, 5, and one of another layer";
  EXPECT_EQ(counters_.bytes_shipped(), 5 * static_cast<uint64_t>(Model().layout.layer(0).bytes));
  for (const ExpertId id : {ExpertId{0, 1}, ExpertId{0, 2}, ExpertId{0, 3}, ExpertId{0, 5}, ExpertId{1, 6}}) {
    EXPECT_EQ(Use(id), Expected(id)) << "layer " << id.layer << " expert " << id.expert;
  }
  EXPECT_EQ(counters_.shipped(), 5u);
}

TEST_F(ExpertCacheTest, JoinsNeighboursOnlyWhereNothingHotterMakesWay) {
  Make(3);
  for (const ExpertId id : {ExpertId{0, 0}, ExpertId{1, 0}, ExpertId{2, 0}}) {
    ASSERT_TRUE(Fetch(id));
    Use(id);
  }
  cache_->AddHeat({1, 0});  // in the second slot
  cache_->BeginStep(2, &counters_);
  const uint64_t before = counters_.copies();
  ASSERT_TRUE(Fetch({3, 1}));
  ASSERT_TRUE(Fetch({3, 2}));
  ASSERT_OK(cache_->StartReadyCopies());
  EXPECT_TRUE(cache_->Contains({1, 0})) << "the hottest stays";
  EXPECT_EQ(counters_.copies(), before + 2);
  EXPECT_EQ(Use({3, 1}), Expected({3, 1}));
  EXPECT_EQ(Use({3, 2}), Expected({3, 2}));
}

TEST_F(ExpertCacheTest, NeverReusesAPinnedSlot) {
  Make(2);
  ASSERT_TRUE(Fetch({0, 0}));
  ASSERT_TRUE(Fetch({0, 1}));
  cache_->Pin({0, 0});
  cache_->Pin({0, 1});
  EXPECT_FALSE(Fetch({0, 2})) << "both slots are pinned";
  EXPECT_EQ(cache_->HeatOfVictim(), std::nullopt);
  cache_->Unpin({0, 1});
  EXPECT_TRUE(Fetch({0, 2}));
  EXPECT_TRUE(cache_->Contains({0, 0}));
  EXPECT_FALSE(cache_->Contains({0, 1}));
  EXPECT_EQ(counters_.shipped_unused(), 1u) << "expert 1 was never used";
}

TEST_F(ExpertCacheTest, GivesUpTheColdestExpert) {
  Make(2);
  ASSERT_TRUE(Fetch({0, 0}));
  ASSERT_TRUE(Fetch({0, 1}));
  cache_->AddHeat({0, 0});
  for (uint64_t step = 2; step < 5; ++step) {
    cache_->BeginStep(step, &counters_);
    cache_->AddHeat({0, 1});
  }
  cache_->BeginStep(5, &counters_);
  EXPECT_GT(cache_->Heat({0, 1}), cache_->Heat({0, 0}));
  ASSERT_TRUE(Fetch({0, 2}));
  EXPECT_TRUE(cache_->Contains({0, 1}));
  EXPECT_FALSE(cache_->Contains({0, 0}));
}

// A pass that goes through more experts than there are slots: those behind it come round last.
TEST_F(ExpertCacheTest, GivesUpTheLayerThatComesLastAmongEquals) {
  Make(3);
  for (int32_t layer = 0; layer < 3; ++layer) {
    ASSERT_TRUE(Fetch({layer, 0}));
    cache_->AddHeat({layer, 0});
  }
  cache_->BeginStep(2, &counters_);
  cache_->BeginLayer(1);
  cache_->AddHeat({0, 0});  // used in this step, which must not make it look hotter than experts of later layers
  ASSERT_TRUE(Fetch({1, 5}));
  EXPECT_FALSE(cache_->Contains({0, 0}));
  EXPECT_TRUE(cache_->Contains({1, 0}));
  EXPECT_TRUE(cache_->Contains({2, 0}));
}

TEST_F(ExpertCacheTest, ForgetsOldUse) {
  Make(1);
  cache_->AddHeat({0, 0});
  EXPECT_DOUBLE_EQ(cache_->Heat({0, 0}), 1);
  for (uint64_t step = 2; step < 66; ++step) cache_->BeginStep(step, &counters_);
  EXPECT_NEAR(cache_->Heat({0, 0}), 0.5, 1e-9) << "half after 64 steps";
}

TEST_F(ExpertCacheTest, CountsAnExpertKeptInTheBackgroundAsResident) {
  Make(2);
  ASSERT_TRUE(Fetch({0, 3}, kKeep));
  Use({0, 3});
  EXPECT_EQ(counters_.resident(), 1u);
  EXPECT_EQ(counters_.shipped(), 0u);
  EXPECT_EQ(counters_.bytes_shipped(), static_cast<uint64_t>(Model().layout.layer(0).bytes));
}

TEST_F(ExpertCacheTest, CountsAsResidentWhatAnEarlierStepCopiedInVain) {
  Make(2);
  ASSERT_TRUE(Fetch({0, 1}));
  ASSERT_OK(cache_->StartReadyCopies());
  cache_->EndStep();
  v1::ExpertCounters next;
  cache_->BeginStep(2, &next);
  Use({0, 1});
  EXPECT_EQ(next.resident(), 1u);
  EXPECT_EQ(next.shipped(), 0u);
  EXPECT_EQ(next.copies(), 0u);
}

TEST_F(ExpertCacheTest, WaitsForARecordBehindOthersInALinkThatHoldsOne) {
  link_.max_records_here = 1;
  Make(4);
  for (int32_t expert = 0; expert < 4; ++expert) ASSERT_TRUE(Fetch({2, expert}));
  EXPECT_EQ(Use({2, 3}), Expected({2, 3}));
  EXPECT_EQ(Use({2, 0}), Expected({2, 0}));
}

TEST_F(ExpertCacheTest, ForgetsWhatIsFilledComingOrAskedFor) {
  Make(4);
  ASSERT_TRUE(Fetch({0, 0}));
  Use({0, 0});
  ASSERT_TRUE(Fetch({0, 1}));  // its copy is under way, or just over
  link_.max_records_here = 0;
  ASSERT_TRUE(Fetch({0, 2}, kKeep));
  ASSERT_OK(cache_->Forget(Deadline::In(absl::Seconds(5))));
  for (int32_t expert = 0; expert < 3; ++expert) EXPECT_FALSE(cache_->Contains({0, expert})) << "expert " << expert;
  EXPECT_EQ(cache_->num_coming(), 0);
  EXPECT_TRUE(link_.held.empty()) << "all records were given back";
  link_.max_records_here = 4;
  ASSERT_TRUE(Fetch({3, 1}));
  EXPECT_EQ(Use({3, 1}), Expected({3, 1}));
}

TEST_F(ExpertCacheTest, MeasuresTheLinkOverFilledAndEmptySlots) {
  Make(5);
  for (int32_t expert = 0; expert < 3; ++expert) ASSERT_TRUE(Fetch({3, expert}));
  Use({3, 1});
  ASSERT_OK_AND_ASSIGN(const ExpertCache::Measurement link,
                       cache_->MeasureLink(absl::Milliseconds(5), Deadline::In(absl::Seconds(5))));
  EXPECT_GT(link.bytes, 0);
  EXPECT_GT(link.rate(), 0);
  EXPECT_TRUE(link_.held.empty()) << "all records were given back";
  for (int32_t expert = 0; expert < 3; ++expert) EXPECT_EQ(Use({3, expert}), Expected({3, expert})) << "expert " << expert;
  EXPECT_FALSE(cache_->Contains({0, 3})) << "what went over an empty slot is not there";
  ASSERT_TRUE(Fetch({0, 3}));
  EXPECT_EQ(Use({0, 3}), Expected({0, 3}));
}

TEST_F(ExpertCacheTest, MeasuresALinkThatHoldsOneRecordWithOneSlot) {
  link_.max_records_here = 1;
  Make(1);
  EXPECT_OK(cache_->MeasureLink(absl::Milliseconds(2), Deadline::In(absl::Seconds(5))));
}

TEST_F(ExpertCacheTest, GivesUpAMeasurementWhoseRecordsDoNotCome) {
  Make(2);
  link_.max_records_here = 0;
  EXPECT_THAT(cache_->MeasureLink(absl::Milliseconds(2), Deadline::In(absl::ZeroDuration())),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(link_.held.empty());
}

TEST_F(ExpertCacheTest, FillsSlotsInOrderAndCountsThemAsResident) {
  Make(8);
  std::vector<ExpertId> experts;
  for (int32_t expert = 0; expert < 8; ++expert) experts.push_back({1, expert});
  std::vector<int64_t> progress;
  ASSERT_OK(cache_->Fill(experts, absl::Seconds(5), [&](int64_t done) { return progress.push_back(done), true; }));
  EXPECT_EQ(link_.asked, experts);
  EXPECT_EQ(progress.size(), 8u);
  EXPECT_EQ(cache_->num_coming(), 0);
  for (const ExpertId id : experts) {
    EXPECT_TRUE(cache_->Arrived(id));
    EXPECT_EQ(Use(id), Expected(id));
  }
  EXPECT_EQ(counters_.resident(), 8u);
  EXPECT_EQ(counters_.shipped(), 0u);
}

TEST_F(ExpertCacheTest, StopsFillingWhenToldTo) {
  Make(8);
  const std::vector<ExpertId> experts = {{1, 0}, {1, 1}, {1, 2}};
  EXPECT_THAT(cache_->Fill(experts, absl::Seconds(5), [](int64_t done) { return done < 2; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(cache_->Contains({1, 2}));
  EXPECT_EQ(Use({1, 1}), Expected({1, 1}));
}

TEST_F(ExpertCacheTest, EmptiesASlotWhoseRecordCameDamaged) {
  Make(2);
  link_.max_records_here = 0;
  ASSERT_TRUE(Fetch({0, 0}));
  cache_->Pin({0, 0});
  link_.max_records_here = 1;
  link_.fail_record = DataLoss("spoilt");
  EXPECT_THAT(cache_->Acquire({0, 0}, Deadline::Never()), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_FALSE(cache_->Contains({0, 0}));
  EXPECT_TRUE(link_.held.empty());
  link_.fail_record = absl::OkStatus();
  ASSERT_TRUE(Fetch({0, 0}));
  EXPECT_EQ(Use({0, 0}), Expected({0, 0}));
}

TEST_F(ExpertCacheTest, RecoverGivesUpPinsAndWhatHasNotCome) {
  link_.max_records_here = 1;
  Make(2);
  ASSERT_TRUE(Fetch({0, 0}));
  ASSERT_TRUE(Fetch({0, 1}));
  Use({0, 0});
  link_.max_records_here = 0;
  cache_->Pin({0, 0});
  cache_->Pin({0, 1});
  cache_->Recover();
  EXPECT_TRUE(Fetch({0, 2}));
  EXPECT_TRUE(Fetch({0, 3}));
}

TEST(ExpertCacheSlots, AreAsManyAsFitButNotMoreThanExperts) {
  const auto model = TinyModel::Make();
  const int64_t slot = ExpertCache::SlotBytes(model->layout, 0, 4);
  EXPECT_EQ(ExpertCache::SlotsIn(slot * 5 - 1, model->layout, 0, 4), 4);
  EXPECT_EQ(ExpertCache::SlotsIn(int64_t{1} << 40, model->layout, 0, 4), 32);
  EXPECT_EQ(ExpertCache::SlotsIn(-1, model->layout, 0, 4), 0);
}

}  // namespace
}  // namespace ferry
