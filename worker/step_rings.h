#pragma once

// Steps and their answers in memory that the coordinator and a worker of its host share, beside the RunSteps stream, which then
// carries nothing and says by its end that the other side is gone.

#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/shm/message_ring.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"
#include "worker/epoch_offer.h"
#include "worker/step_runner.h"

namespace ferry {

struct StepRings {
  std::unique_ptr<MessageRing> steps, answers;
};

// Makes the memory of an epoch and offers it to the coordinator. Thread-safe.
class StepSharer {
 public:
  // Says in `response` where the memory is, if `host` is this one. What keeps it from being shared is logged: steps come by the
  // stream.
  void Offer(const std::string& host, internal::v1::BeginEpochResponse* response);
  // What the last Offer made, for the stream that names its key: one of an epoch that is over may come late. Empty: there is
  // none, or it has been taken.
  StepRings Take(const std::string& key);

 private:
  absl::Status OfferRings(internal::v1::BeginEpochResponse* response);

  std::mutex mutex_;
  EpochOffer offer_;  // guarded by mutex_, as rings_
  StepRings rings_;
};

// Runs the steps that come through `rings` as long as it lives. Null rings: none come.
class RingSteps {
 public:
  RingSteps(StepRings rings, StepRunner* runner);
  ~RingSteps();

 private:
  void Run();

  const std::unique_ptr<MessageRing> steps_;
  const std::shared_ptr<MessageRing> answers_;  // shared with whoever answers late
  StepRunner& runner_;
  std::thread thread_;
};

}  // namespace ferry
