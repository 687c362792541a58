#pragma once

// Steps and their answers through memory that the coordinator and a worker of its host share. The RunSteps stream stays open
// beside it: it carries no messages then, and its end tells each side that the other is gone.

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "common/shm/message_ring.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"
#include "worker/epoch_offer.h"
#include "worker/step_runner.h"

namespace ferry {

struct StepRings {
  std::unique_ptr<MessageRing> steps, answers;
};

// Makes the rings of an epoch and offers them to the coordinator. Thread-safe.
class StepSharer {
 public:
  // When `machine` is this machine: makes rings and writes into `response` how to fetch them. On failure it logs the reason, and
  // steps come through the stream instead.
  void Offer(const std::string& machine, internal::v1::BeginEpochResponse* response);
  // Returns the rings made by the last Offer if `key` is theirs; a stream of an earlier epoch may still ask with an old key.
  // Null rings: the key is another, or the rings were taken before.
  StepRings Take(const std::string& key);

 private:
  absl::Status OfferRings(internal::v1::BeginEpochResponse* response);

  std::mutex mutex_;
  EpochOffer offer_;  // guarded by mutex_
  StepRings rings_;   // guarded by mutex_
};

// A thread that reads steps from `rings` and submits them to the runner, until destruction. With null rings it does nothing.
class RingSteps {
 public:
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<RingSteps>> Start(StepRings rings, StepRunner* runner);
  ~RingSteps();

 private:
  RingSteps(StepRings rings, StepRunner* runner)
      : steps_(std::move(rings.steps)), answers_(std::move(rings.answers)), runner_(*runner) {}
  void Run();

  const std::unique_ptr<MessageRing> steps_;
  const std::shared_ptr<MessageRing> answers_;  // answers of steps still running share it
  StepRunner& runner_;
  std::thread thread_;
};

}  // namespace ferry
