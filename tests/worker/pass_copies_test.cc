#include "worker/pass_copies.h"

#include <gmock/gmock.h>

#include "common/deadline.h"
#include "tests/testing/soon.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

class PassCopiesTest : public testing::Test {
 protected:
  void Make(int64_t num_slots) {
    cache_ = ExpertCache::Create(ops_.get(), &link_, &Model().layout, 0, 4, num_slots).value();
    cache_->BeginStep(1, &counters_);
    copies_ = std::make_unique<PassCopies>(cache_.get());
  }
  // Begins a pass over layer 0 with that many rows of each of its eight experts.
  void Begin(const std::vector<int32_t>& tokens, bool copy_unused = false) {
    tokens_ = tokens;
    std::vector<ActivatedExpert> uses;
    for (int32_t expert = 0; expert < 8; ++expert) {
      if (tokens[expert] > 0) uses.push_back({.expert = expert, .tokens = tokens[expert]});
    }
    copies_->Begin(0, uses, tokens_, copy_unused);
  }
  // Computes all that is ready, again and again; the experts in order.
  std::vector<int32_t> Run() {
    std::vector<int32_t> computed;
    EXPECT_OK(copies_->Start(Soon()));
    while (!copies_->done()) {
      const std::vector<int32_t> ready = copies_->NextReady(Soon()).value();
      for (const int32_t expert : ready) {
        EXPECT_OK(cache_->Acquire({0, expert}, Soon()));
        cache_->Release({0, expert}, ops_->MarkCompute().value());
        computed.push_back(expert);
      }
      EXPECT_OK(copies_->Start(Soon()));
    }
    return computed;
  }
  std::vector<int32_t> Asked() const {
    std::vector<int32_t> experts;
    for (const ExpertId id : link_.asked) experts.push_back(id.expert);
    return experts;
  }

  std::unique_ptr<Ops> ops_ = MakeOps();
  FakeLink link_{&Model(), ops_.get()};
  v1::ExpertCounters counters_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<PassCopies> copies_;
  std::vector<int32_t> tokens_;
};

TEST_F(PassCopiesTest, StreamsEveryExpertThroughFewSlots) {
  Make(2);
  Begin({1, 2, 0, 3, 4, 0, 5, 6});
  EXPECT_THAT(Run(), UnorderedElementsAre(0, 1, 3, 4, 6, 7));
}

TEST_F(PassCopiesTest, AsksForTheExpertWithMostRowsFirst) {
  Make(8);
  Begin({0, 1, 0, 9, 0, 5, 0, 0});
  Run();
  EXPECT_THAT(Asked(), ElementsAre(3, 5, 1));
}

TEST_F(PassCopiesTest, KeepsNeighboursTogether) {
  Make(8);
  Begin({0, 1, 9, 0, 0, 5, 0, 0});
  Run();
  EXPECT_THAT(Asked(), ElementsAre(1, 2, 5)) << "1 goes with 2, which has most rows";
}

TEST_F(PassCopiesTest, CopiesNoExpertThatASlotHas) {
  Make(4);
  Begin({0, 2, 0, 0, 0, 0, 0, 0});
  Run();
  Begin({0, 2, 0, 3, 0, 0, 0, 0});
  EXPECT_THAT(Run(), UnorderedElementsAre(1, 3));
  EXPECT_THAT(Asked(), ElementsAre(1, 3));
}

TEST_F(PassCopiesTest, CopiesUnusedExpertsLastAndReturnsNoneOfThem) {
  Make(3);
  Begin({0, 0, 0, 0, 0, 7, 0, 0}, /*copy_unused=*/true);
  EXPECT_THAT(Run(), ElementsAre(5));
  EXPECT_THAT(Asked(), ElementsAre(5, 0, 1, 2, 3, 4, 6, 7));
}

TEST_F(PassCopiesTest, SaysWhenSlotsMayServeTheNextLayer) {
  Make(1);
  Begin({1, 0, 0, 1, 0, 0, 0, 0});
  EXPECT_FALSE(copies_->Start(Soon()).value());
  const std::vector<int32_t> ready = copies_->NextReady(Soon()).value();
  ASSERT_THAT(ready, ElementsAre(0));
  ASSERT_OK(cache_->Acquire({0, 0}, Soon()));
  cache_->Release({0, 0}, ops_->MarkCompute().value());
  EXPECT_TRUE(copies_->Start(Soon()).value());
  EXPECT_FALSE(copies_->done());
}

}  // namespace
}  // namespace ferry
