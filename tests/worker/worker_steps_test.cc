// RunSteps: steps by messages and through shared memory.

#include "common/deadline.h"
#include "common/machine_id.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/message_ring.h"
#include "tests/testing/soon.h"
#include "tests/worker/served_worker.h"
#include "worker/worker_service.h"

namespace ferry {
namespace {

// The coordinator's ends of the rings that a worker offered.
class Rings {
 public:
  explicit Rings(const internal::v1::BeginEpochResponse& offer) : key_(offer.key()) {
    std::vector<UniqueFd> descriptors = FetchDescriptors(offer.socket(), offer.key(), Soon()).value();
    steps_ = MessageRing::Map(descriptors.at(0).Release()).value();
    answers_ = MessageRing::Map(descriptors.at(1).Release()).value();
  }
  void Send(const std::string& message) { ASSERT_OK(steps_->Write(message, Soon())); }
  internal::v1::StepResponse Receive() {
    internal::v1::StepResponse response;
    EXPECT_TRUE(response.ParseFromString(answers_->Read(Soon()).value()));
    return response;
  }
  absl::Status NothingComes() { return answers_->Read(Deadline::In(absl::Milliseconds(50))).status(); }

  const std::string& key() const { return key_; }

 private:
  const std::string key_;
  std::unique_ptr<MessageRing> steps_, answers_;
};

TEST(WorkerService, EndsAStreamAfterItsLastAnswer) {
  ServedWorker worker(1, 0, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  Stream stream(worker);
  stream.Send(Request(1, 1, {1, 2}));
  stream.Send(Request(1, 2, {1, 2}));
  EXPECT_OK(stream.End());
  EXPECT_EQ(stream.answers_after_end, 2);
}

TEST(WorkerService, AnswersTheSameThroughSharedMemory) {
  ServedWorker worker(1, 0, 4, /*loaded=*/true, /*share_memory=*/true);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  internal::v1::StepResponse by_stream;
  {
    Stream stream(worker);
    stream.Send(Request(1, 1, {3, 4, 5}));
    by_stream = stream.Receive();
  }
  Rings rings(worker.BeginEpochFrom(MachineId(), 2));
  Stream life(worker, rings.key());
  rings.Send(Request(2, 1, {3, 4, 5}).SerializeAsString());
  const internal::v1::StepResponse through_rings = rings.Receive();
  ASSERT_EQ(through_rings.logits_size(), 1);
  EXPECT_EQ(through_rings.logits(0).logits(), by_stream.logits(0).logits());
  EXPECT_OK(life.End());
}

TEST(WorkerService, RunsNothingFromTheRingsOfAnEarlierEpoch) {
  ServedWorker worker(1, 0, 4, true, true);
  Rings old(worker.BeginEpochFrom(MachineId(), 1));
  Stream old_life(worker, old.key());
  old.Send(Request(1, 1, {3}).SerializeAsString());
  old.Receive();
  Rings rings(worker.BeginEpochFrom(MachineId(), 2));
  Stream late(worker, old.key());  // that arrives after the next epoch has begun takes nothing of it
  Stream life(worker, rings.key());
  old.Send(Request(1, 2, {3}).SerializeAsString());
  EXPECT_EQ(CodeOf(old.Receive()), absl::StatusCode::kAborted);
  rings.Send(Request(2, 1, {3}).SerializeAsString());
  EXPECT_EQ(CodeOf(rings.Receive()), absl::StatusCode::kOk);
}

TEST(WorkerService, BytesThatAreNoStepAreAnsweredWithWhatEndsTheEpoch) {
  ServedWorker worker(1, 0, 4, true, true);
  Rings rings(worker.BeginEpochFrom(MachineId(), 1));
  Stream life(worker, rings.key());
  rings.Send("\xff\xff\xff");
  const internal::v1::StepResponse refusal = rings.Receive();
  EXPECT_EQ(refusal.step(), 0u) << "there is no step 0";
  EXPECT_EQ(CodeOf(refusal), absl::StatusCode::kInternal);
  EXPECT_THAT(rings.NothingComes(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_OK(life.End());
}

TEST(WorkerService, RefusesStreamsWithoutNumber) {
  ServedWorker worker(7, 0, 4);
  std::vector<std::unique_ptr<Stream>> open;
  for (uint64_t step = 1; step <= 4; ++step) {
    open.push_back(std::make_unique<Stream>(worker));
    open.back()->Send(Request(1, step, {3}));
    open.back()->Receive();  // so that the worker has counted this stream before the next one comes
  }
  Stream another(worker);
  EXPECT_THAT(another.End(), StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace ferry
