#include "coordinator/cluster/membership.h"

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

MemberInfo Process(uint64_t incarnation) {
  return {.incarnation = Incarnation(incarnation), .machine = "this", .address = "127.0.0.1:1", .device = "cpu", .pid = 1};
}

class MembershipTest : public ::testing::Test {
 protected:
  MemberState StateOf(int worker) { return membership_.Members()[worker].state; }
  void MakeReady() {
    for (int i = 0; i < 2; ++i) {
      ASSERT_OK(membership_.Register(Process(10 + i), std::nullopt));
      ASSERT_OK(membership_.RecordHeartbeat(WorkerId(i), Incarnation(10 + i), /*ready=*/true));
    }
  }

  FakeClock clock_;
  Membership membership_{{.num_workers = 2, .heartbeat_timeout = absl::Seconds(10)}, &clock_};
};

TEST_F(MembershipTest, GivesPlacesInOrderOfArrival) {
  EXPECT_EQ(membership_.Register(Process(1), std::nullopt).value(), WorkerId(0));
  EXPECT_EQ(membership_.Register(Process(2), std::nullopt).value(), WorkerId(1));
  EXPECT_EQ(StateOf(0), MemberState::kLoading);
}

TEST_F(MembershipTest, GivesTheWantedPlaceWhenItIsFree) {
  EXPECT_EQ(membership_.Register(Process(1), WorkerId(1)).value(), WorkerId(1));
  EXPECT_EQ(membership_.Register(Process(2), std::nullopt).value(), WorkerId(0));
}

TEST_F(MembershipTest, RefusesOneTooMany) {
  MakeReady();
  EXPECT_THAT(membership_.Register(Process(99), std::nullopt), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(MembershipTest, RefusesNoIncarnationAndNoSuchPlace) {
  EXPECT_THAT(membership_.Register(Process(0), std::nullopt),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("incarnation")));
  EXPECT_THAT(membership_.Register(Process(1), WorkerId(2)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("wanted")));
  EXPECT_THAT(membership_.Register(Process(1), WorkerId(-1)), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(MembershipTest, RefusesAPlaceWhoseNeighbourOnAnotherHostCannotSendToIt) {
  MemberInfo near = Process(1), far = Process(2);
  near.loopback = true;
  far.machine = "another";
  far.address = "10.0.0.2:80";
  ASSERT_OK(membership_.Register(far, WorkerId(0)));
  EXPECT_THAT(membership_.Register(near, WorkerId(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("worker 0 on another host")));
}

TEST_F(MembershipTest, RefusesAPlaceThatCannotSendToItsNeighbourOnAnotherHost) {
  MemberInfo near = Process(1), far = Process(2);
  near.loopback = true;
  far.machine = "another";
  ASSERT_OK(membership_.Register(near, WorkerId(1)));
  EXPECT_THAT(membership_.Register(far, WorkerId(0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("worker 1 listens on 127.0.0.1:1")));
  ASSERT_TRUE(membership_.MarkLost(WorkerId(1), Incarnation(1), "killed"));
  EXPECT_OK(membership_.Register(far, WorkerId(0))) << "a lost process does not count";
}

TEST_F(MembershipTest, NobodySendsToTheFirstPlaceSoItsLoopbackWillDo) {
  MemberInfo near = Process(1), far = Process(2);
  near.loopback = true;
  far.machine = "another";
  ASSERT_OK(membership_.Register(near, WorkerId(0)));
  EXPECT_OK(membership_.Register(far, WorkerId(1)));
}

TEST_F(MembershipTest, AnIncarnationHasOnePlaceOnce) {
  ASSERT_OK(membership_.Register(Process(1), WorkerId(1)));
  EXPECT_THAT(membership_.Register(Process(1), std::nullopt), StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(StateOf(1), MemberState::kLoading);
}

TEST_F(MembershipTest, RefusesAHeartbeatFromAnEarlierIncarnation) {
  ASSERT_OK(membership_.Register(Process(7), WorkerId(0)));
  EXPECT_THAT(membership_.RecordHeartbeat(WorkerId(0), Incarnation(6), true), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(membership_.RecordHeartbeat(WorkerId(1), Incarnation(7), true), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(membership_.RecordHeartbeat(WorkerId(5), Incarnation(7), true), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(MembershipTest, AHeartbeatKeepsAPlaceAndSilenceLosesIt) {
  MakeReady();
  clock_.Advance(absl::Seconds(9));
  ASSERT_OK(membership_.RecordHeartbeat(WorkerId(0), Incarnation(10), true));
  clock_.Advance(absl::Seconds(2));
  const std::vector<Member> lost = membership_.ExpireHeartbeats();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].id, WorkerId(1));
  EXPECT_EQ(StateOf(0), MemberState::kReady);
  EXPECT_EQ(StateOf(1), MemberState::kLost);
  EXPECT_TRUE(membership_.ExpireHeartbeats().empty()) << "it is reported once";
}

TEST_F(MembershipTest, ALostProcessStaysLost) {
  MakeReady();
  ASSERT_TRUE(membership_.MarkLost(WorkerId(1), Incarnation(11), "its stream ended"));
  EXPECT_FALSE(membership_.MarkLost(WorkerId(1), Incarnation(11), "again"));
  EXPECT_THAT(membership_.RecordHeartbeat(WorkerId(1), Incarnation(11), true),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("its stream ended")));
  EXPECT_THAT(membership_.Register(Process(11), WorkerId(1)), StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(membership_.Register(Process(12), std::nullopt).value(), WorkerId(1));
}

TEST_F(MembershipTest, NobodyTakesThePlaceOfAProcessThatIsThere) {
  MakeReady();
  ASSERT_OK(membership_.BeginEpoch());
  EXPECT_THAT(membership_.Register(Process(20), WorkerId(0)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("still there")));
  EXPECT_EQ(membership_.epoch(), 1u);
  EXPECT_OK(membership_.RecordHeartbeat(WorkerId(0), Incarnation(10), true));
  ASSERT_TRUE(membership_.MarkLost(WorkerId(0), Incarnation(10), "killed"));
  EXPECT_EQ(membership_.Register(Process(20), WorkerId(0)).value(), WorkerId(0));
}

TEST_F(MembershipTest, AnEpochNeedsEverybodyReady) {
  ASSERT_OK(membership_.Register(Process(1), std::nullopt));
  ASSERT_OK(membership_.RecordHeartbeat(WorkerId(0), Incarnation(1), true));
  EXPECT_THAT(membership_.BeginEpoch(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worker 1 is starting")));
  ASSERT_OK(membership_.Register(Process(2), std::nullopt));
  EXPECT_THAT(membership_.BeginEpoch(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worker 1 is loading")));
  ASSERT_OK(membership_.RecordHeartbeat(WorkerId(1), Incarnation(2), true));
  EXPECT_EQ(membership_.BeginEpoch().value(), 1u);
}

TEST_F(MembershipTest, AnEpochEndsWithAnyOfItsWorkersAndTheNextHasAnotherNumber) {
  MakeReady();
  EXPECT_EQ(membership_.epoch(), 0u);
  ASSERT_EQ(membership_.BeginEpoch().value(), 1u);
  EXPECT_EQ(membership_.epoch(), 1u);
  ASSERT_TRUE(membership_.MarkLost(WorkerId(0), Incarnation(10), "killed"));
  EXPECT_EQ(membership_.epoch(), 0u);
  EXPECT_THAT(membership_.Describe(), HasSubstr("worker 0 is lost (killed)"));
  ASSERT_OK(membership_.Register(Process(30), std::nullopt));
  ASSERT_OK(membership_.RecordHeartbeat(WorkerId(0), Incarnation(30), true));
  EXPECT_EQ(membership_.BeginEpoch().value(), 2u);
}

}  // namespace
}  // namespace ferry
