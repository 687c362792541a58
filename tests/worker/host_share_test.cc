#include "worker/host_share.h"

#include "common/deadline.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

class HostShareTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 5, kTopK = 2, kLayer = 1;

  void SetUp() override {
    n_embd_ = Model().config.n_embd;
    in_ = RandomFloats(kRows * n_embd_, 5);
    ASSERT_OK_AND_ASSIGN(share_, HostShare::Create(ops_.get(), &link_, &Model().layout, n_embd_));
  }
  Tensor In() { return Tensor(in_.data(), DType::kF32, kRows, n_embd_); }
  Tensor ContributionsIn(std::vector<float>& memory) {
    memory.assign(kRows * kTopK * n_embd_, 0);
    return Tensor(memory.data(), DType::kF32, kRows * kTopK, n_embd_);
  }
  StepContext Context() {
    return {.step = 1, .deadline = Deadline::In(absl::Seconds(20)), .counters = &counters_, .trace = &trace_};
  }
  // Rows 0, 2, 4 go to expert 0 and rows 1, 3 to expert 3.
  HostGroups Groups() const { return {.offsets = offsets_, .rows = rows_, .outs = outs_}; }

  // Contributions of both experts, computed by the host.
  std::vector<float> Share() {
    std::vector<float> contributions;
    const Tensor out = ContributionsIn(contributions);
    EXPECT_OK(share_->BeginLayer(In(), /*likely=*/true));
    EXPECT_OK(share_->Start(Context(), kLayer, std::vector<int32_t>{0, 3}, Groups()));
    EXPECT_OK(share_->Finish(Context(), kLayer, out));
    return contributions;
  }
  // Begins a layer whose share has a request a row and a link that takes two at once; the contributions will be in `memory`.
  Tensor StartInRequestsOfARow(std::span<const int32_t> experts, std::vector<float>& memory) {
    link_.row_capacity = 1;
    link_.running_capacity = 2;
    const Tensor out = ContributionsIn(memory);
    EXPECT_OK(share_->BeginLayer(In(), /*likely=*/false));
    EXPECT_OK(share_->Start(Context(), kLayer, experts, Groups()));
    return out;
  }
  // The contributions of both experts, computed by the device.
  std::vector<float> OnDevice() {
    std::vector<float> contributions;
    const Tensor out = ContributionsIn(contributions);
    std::vector<ExpertUse> uses;
    for (const int32_t expert : {0, 3}) {
      uses.push_back({.record = Model().Record(kLayer, expert).data(),
                      .group = expert,
                      .num_rows = offsets_[expert + 1] - offsets_[expert]});
    }
    const ExpertGroups groups = {.num_groups = 8,
                                 .num_entries = static_cast<int64_t>(rows_.size()),
                                 .offsets = offsets_.data(),
                                 .rows = rows_.data(),
                                 .outs = outs_.data()};
    EXPECT_OK(ops_->ExpertMlp(Model().layout.layer(kLayer), uses, groups, Model().config.expert.glu, In(), out));
    return contributions;
  }

  std::unique_ptr<Ops> ops_ = MakeOps(), host_ops_ = MakeOps();
  FakeLink link_{&Model(), host_ops_.get()};
  v1::ExpertCounters counters_;
  StepTrace trace_{false};
  std::unique_ptr<HostShare> share_;
  int64_t n_embd_ = 0;
  std::vector<float> in_;
  const std::vector<int32_t> offsets_ = {0, 3, 3, 3, 5, 5, 5, 5, 5}, rows_ = {0, 2, 4, 1, 3}, outs_ = {0, 4, 8, 2, 6};
};

TEST_F(HostShareTest, GivesTheBitsThatTheDeviceWouldGive) {
  EXPECT_EQ(Share(), OnDevice());
  EXPECT_EQ(link_.num_computes, 1);
}

TEST_F(HostShareTest, SendsAsManyRequestsAsTheLinkNeeds) {
  link_.row_capacity = 2;
  EXPECT_EQ(Share(), OnDevice());
  EXPECT_EQ(link_.num_computes, 3) << "three rows of expert 0 in two requests, then expert 3";
}

TEST_F(HostShareTest, SendsTheNextRequestBeforeItTakesAnAnswer) {
  link_.row_capacity = 1;
  link_.running_capacity = 2;
  EXPECT_EQ(Share(), OnDevice());
  EXPECT_EQ(link_.num_computes, 5);
  EXPECT_EQ(link_.most_running, 2);
}

TEST_F(HostShareTest, GoesOnInThePausesOfTheDevicesShare) {
  std::vector<float> contributions;
  const Tensor out = StartInRequestsOfARow(std::vector<int32_t>{0, 3}, contributions);
  EXPECT_EQ(link_.num_computes, 1);
  ASSERT_OK(share_->Continue(Context(), kLayer, out));
  ASSERT_OK(share_->Continue(Context(), kLayer, out));
  EXPECT_EQ(link_.num_computes, 2) << "the host has answered none";
  EXPECT_EQ(link_.num_finished, 0);
  link_.answers_at_once = true;
  for (int i = 0; i < 10; ++i) ASSERT_OK(share_->Continue(Context(), kLayer, out));
  EXPECT_EQ(link_.num_computes, 5);
  EXPECT_EQ(link_.num_finished, 5);
  ASSERT_OK(share_->Finish(Context(), kLayer, out));
  EXPECT_EQ(contributions, OnDevice());
}

TEST_F(HostShareTest, DoesNothingWithoutAShare) {
  std::vector<float> contributions;
  const Tensor out = ContributionsIn(contributions);
  ASSERT_OK(share_->BeginLayer(In(), /*likely=*/false));
  EXPECT_OK(share_->Continue(Context(), kLayer, out));
  EXPECT_OK(share_->Finish(Context(), kLayer, out));
  EXPECT_EQ(link_.num_computes, 0);
}

TEST_F(HostShareTest, CanBeginAnewAfterAStepThatFailed) {
  std::vector<float> contributions;
  const Tensor out = StartInRequestsOfARow(std::vector<int32_t>{0}, contributions);
  ASSERT_OK(share_->Continue(Context(), kLayer, out));
  EXPECT_EQ(link_.num_computes, 2);
  share_->Recover();
  EXPECT_EQ(link_.num_finished, 2);
  EXPECT_EQ(Share(), OnDevice());
}

TEST_F(HostShareTest, NamesTheLayerOfAnError) {
  link_.fail_compute = Unavailable("gone");
  std::vector<float> contributions;
  const Tensor out = ContributionsIn(contributions);
  ASSERT_OK(share_->BeginLayer(In(), /*likely=*/true));
  ASSERT_OK(share_->Start(Context(), kLayer, std::vector<int32_t>{0, 3}, Groups()));
  EXPECT_THAT(share_->Finish(Context(), kLayer, out),
              StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("experts of layer 1 on the host")));
}

}  // namespace
}  // namespace ferry
