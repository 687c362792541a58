// Hidden states from device to device between two workers, whose devices are host memory here: the choice, the agreement, the
// rows, and the ends of epochs. What waits for NCCL itself is tested in common/nccl.

#include <thread>

#include "absl/time/clock.h"
#include "common/machine_id.h"
#include "tests/testing/soon.h"
#include "tests/worker/fake_device_peers.h"
#include "tests/worker/served_worker.h"
#include "worker/link_choice.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

LinkTime Time(int64_t rows, int64_t shm_us, int64_t nccl_us) {
  return {.rows = rows, .shm = absl::Microseconds(shm_us), .nccl = absl::Microseconds(nccl_us)};
}

TEST(LinkChoice, TakesNcclFromTheSizeOnAtWhichItStaysFaster) {
  EXPECT_EQ(NcclFromRows({}), kNoMessage);
  EXPECT_EQ(NcclFromRows(std::vector{Time(1, 20, 30), Time(64, 60, 40), Time(4096, 1000, 150)}), 64);
  EXPECT_EQ(NcclFromRows(std::vector{Time(1, 40, 30), Time(64, 60, 40)}), 1);
  EXPECT_EQ(NcclFromRows(std::vector{Time(1, 40, 30), Time(64, 60, 70), Time(512, 90, 80)}), 512) << "64 rows are slower";
  EXPECT_EQ(NcclFromRows(std::vector{Time(1, 40, 30), Time(64, 60, 70)}), kNoMessage);
  EXPECT_EQ(NcclFromRows(std::vector{Time(1, 100, 99)}), kNoMessage) << "as fast by chance";
}

TEST(LinkChoice, SaysBothFigures) {
  EXPECT_THAT(DescribeChoice(std::vector{Time(1, 20, 30), Time(64, 60, 40)}),
              testing::AllOf(HasSubstr("NCCL from 64 rows on"), HasSubstr("40 us over NCCL"), HasSubstr("60 us through shared")));
}

TEST(LinkChoice, MeasuresNoMoreRowsThanAStepHas) {
  EXPECT_THAT(RowsToMeasure(300), ElementsAre(1, 64));
  EXPECT_THAT(RowsToMeasure(16384), ElementsAre(1, 64, 512, 4096));
}

class DeviceLinks : public testing::Test {
 protected:
  StageLinkOptions With(FakeDevicePeers* peers, Transport transport) const {
    return {.transport = transport, .peers = peers, .no_peers_because = "no GPU is here"};
  }
  absl::Status Join(ServedWorker& worker, internal::v1::JoinDevicesRequest request) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::JoinDevicesResponse response;
    return FromGrpcStatus(worker.stub().JoinDevices(&context, request, &response));
  }
  internal::v1::JoinDevicesRequest Question() const {
    internal::v1::JoinDevicesRequest request;
    request.set_epoch(1);
    request.set_incarnation(2);
    request.set_machine(MachineId());
    request.set_device("GPU a");
    return request;
  }

  FakeDevicePeers::Ways ways_;
  FakeDevicePeers a_{&ways_, "GPU a"}, b_{&ways_, "GPU b"};
};

TEST_F(DeviceLinks, CarryEveryMessageWhereNcclIsAskedFor) {
  for (const bool share_memory : {false, true}) {
    ServedWorker first(1, 0, 2, true, share_memory, With(&a_, Transport::kNccl));
    ServedWorker last(2, 2, 4, true, share_memory, With(&b_, Transport::kAuto));
    ASSERT_OK(last.BeginEpoch(1, nullptr));
    ASSERT_OK(first.BeginEpoch(1, &last));
    EXPECT_EQ(first.link().way(), "nccl");
    const int64_t before = ways_.Transfers();
    ExpectTheLogitsOfOne(first, last, 1, {100});
    EXPECT_EQ(ways_.Transfers(), before + 1);
  }
}

TEST_F(DeviceLinks, AreMeasuredAgainstMemoryByAuto) {
  ServedWorker first(1, 0, 2, true, true, With(&a_, Transport::kAuto)), last(2, 2, 4, true, true, With(&b_, Transport::kAuto));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first.BeginEpoch(1, &last));
  const v1::HiddenStatesLink link = first.link();
  ASSERT_EQ(link.times_size(), 2) << "1 and 64 rows of at most 256; " << link.why();
  for (const v1::HiddenStatesTime& time : link.times()) {
    EXPECT_GT(time.shm_seconds(), 0);
    EXPECT_GT(time.nccl_seconds(), 0);
  }
  EXPECT_THAT(link.why(), HasSubstr("a fake"));
  const int64_t measured = ways_.Transfers();
  EXPECT_GT(measured, 0);
  ExpectTheLogitsOfOne(first, last, 1, {100});
  ASSERT_OK(last.BeginEpoch(2, nullptr));
  ASSERT_OK(first.BeginEpoch(2, &last));
  EXPECT_LE(ways_.Transfers(), measured + 1) << "the figures of the same two workers are kept";
  ExpectTheLogitsOfOne(first, last, 2, {100});
}

TEST_F(DeviceLinks, AreNotTakenByAutoWhereTheNextWorkerCannotJoin) {
  ServedWorker first(1, 0, 2, true, true, With(&a_, Transport::kAuto)),
      last(2, 2, 4, true, true, With(nullptr, Transport::kAuto));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first.BeginEpoch(1, &last));
  EXPECT_EQ(first.link().way(), "shm");
  EXPECT_THAT(first.link().why(), HasSubstr("no GPU is here"));
  ExpectTheLogitsOfOne(first, last, 1, {100});
  EXPECT_EQ(ways_.by_key.size(), 0u) << "no key was made in vain";
}

TEST_F(DeviceLinks, AreRefusedByNameWhereTheyCannotBe) {
  ServedWorker worker(2, 2, 4, true, true, With(&b_, Transport::kAuto));
  ServedWorker of_memory(2, 2, 4, true, true, With(&b_, Transport::kShm));
  ServedWorker without(2, 2, 4, true, true, With(nullptr, Transport::kAuto));
  for (ServedWorker* const each : {&worker, &of_memory, &without}) ASSERT_OK(each->BeginEpoch(1, nullptr));
  constexpr auto kWrong = absl::StatusCode::kFailedPrecondition;
  EXPECT_OK(Join(worker, Question()));
  EXPECT_THAT(Join(of_memory, Question()), StatusIs(kWrong, HasSubstr("--transport shm")));
  EXPECT_THAT(Join(without, Question()), StatusIs(kWrong, HasSubstr("no GPU is here")));
  internal::v1::JoinDevicesRequest request = Question();
  request.set_device("GPU b");
  EXPECT_THAT(Join(worker, request), StatusIs(kWrong, HasSubstr("both workers compute on one GPU, GPU b")));
  request = Question();
  request.set_machine("elsewhere");
  request.set_network(true);
  EXPECT_THAT(Join(worker, request), StatusIs(kWrong, HasSubstr("--nccl-interface")));
  request = Question();
  request.set_epoch(9);
  EXPECT_THAT(Join(worker, request), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 9, want 1")));
  request = Question();
  request.set_incarnation(3);
  EXPECT_THAT(Join(worker, request), StatusIs(absl::StatusCode::kAborted, HasSubstr("another worker was meant")));
  request = Question();
  request.set_key(std::string(300, 'k'));
  EXPECT_THAT(Join(worker, request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("key has 300 bytes")));
}

TEST_F(DeviceLinks, EndTheBeginOfAnEpochThatAskedForThemInVain) {
  ServedWorker first(1, 0, 2, true, true, With(&a_, Transport::kNccl)), last(2, 2, 4, true, true, With(&a_, Transport::kAuto));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  EXPECT_THAT(first.BeginEpoch(1, &last), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                   testing::AllOf(HasSubstr("--transport nccl"), HasSubstr("one GPU"))));
}

TEST_F(DeviceLinks, EndATransferWhoseOtherWorkerIsGoneWithTheEpoch) {
  auto first = std::make_unique<ServedWorker>(1, 0, 2, true, true, With(&a_, Transport::kNccl));
  ServedWorker last(2, 2, 4, true, true, With(&b_, Transport::kAuto)), other(3, 2, 4, true, true, With(&b_, Transport::kAuto));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first->BeginEpoch(1, &last));
  Stream steps(*first);  // the next worker computes no step, and takes no part in the transfer
  steps.Send(Request(1, 1, {1, 2}));
  ASSERT_OK(other.BeginEpoch(2, nullptr));
  const Stopwatch before;
  ASSERT_OK(first->BeginEpoch(2, &other));
  EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kAborted);
  EXPECT_LT(before.Elapsed(), absl::Seconds(10)) << "the step had 20 s";
  ExpectTheLogitsOfOne(*first, other, 2, {100});
}

TEST_F(DeviceLinks, AreMeasuredWithinBounds) {
  ServedWorker worker(2, 2, 4, true, true, With(&b_, Transport::kAuto));
  const auto measure = [&](std::vector<uint32_t> rows, double seconds) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::MeasureActivationsRequest request;
    request.set_epoch(1);
    request.set_incarnation(2);
    request.set_seconds(seconds);
    request.mutable_rows()->Assign(rows.begin(), rows.end());
    internal::v1::MeasureActivationsResponse response;
    return FromGrpcStatus(worker.stub().MeasureActivations(&context, request, &response));
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(measure({1}, 1), StatusIs(absl::StatusCode::kAborted)) << "no epoch lasts";
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  EXPECT_THAT(measure({}, 1), StatusIs(kInvalid, HasSubstr("rows has 0 messages")));
  EXPECT_THAT(measure(std::vector<uint32_t>(257, 1), 1), StatusIs(kInvalid, HasSubstr("257 messages")));
  EXPECT_THAT(measure({1, 257}, 1), StatusIs(kInvalid, HasSubstr("messages of 1 to 257, want 1 to 256")));
  EXPECT_THAT(measure({0}, 1), StatusIs(kInvalid, HasSubstr("want 1 to 256")));
  EXPECT_THAT(measure({1}, 6), StatusIs(kInvalid, HasSubstr("seconds is 6")));
  EXPECT_THAT(measure({1}, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("neither memory nor a data connection")));
}

TEST_F(DeviceLinks, AreOffWhereMemoryOrMessagesAreAskedFor) {
  ServedWorker by_memory(1, 0, 2, true, true, With(&a_, Transport::kShm)), last(2, 2, 4, true, true, With(&b_, Transport::kAuto));
  ServedWorker by_messages(3, 0, 2, true, true, With(&a_, Transport::kGrpc)), far(4, 2, 4, true, false);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(by_memory.BeginEpoch(1, &last));
  EXPECT_EQ(by_memory.link().way(), "shm");
  ASSERT_OK(last.BeginEpoch(2, nullptr));
  ASSERT_OK(by_messages.BeginEpoch(2, &last));
  EXPECT_EQ(by_messages.link().way(), "grpc");
  ExpectTheLogitsOfOne(by_messages, last, 2, {100});
  ASSERT_OK(far.BeginEpoch(3, nullptr));
  EXPECT_THAT(by_memory.BeginEpoch(3, &far), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--transport shm")));
}

}  // namespace
}  // namespace ferry
