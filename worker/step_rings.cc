#include "worker/step_rings.h"

#include <utility>

#include "common/deadline.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kReaderPatience = absl::Seconds(10);  // for a coordinator that reads nothing

// Answers of one ring, from whichever thread.
class AnswerRing {
 public:
  explicit AnswerRing(std::shared_ptr<MessageRing> ring) : ring_(std::move(ring)) {}
  void Write(const internal::v1::StepResponse& response) {
    const std::lock_guard lock(mutex_);
    const absl::Status written = ring_->Write(response.SerializeAsString(), Deadline::In(kReaderPatience));
    if (!written.ok() && !absl::IsAborted(written))
      spdlog::warn("the answer to step {} is lost: {}", response.step(), written.ToString());
  }

 private:
  std::mutex mutex_;
  const std::shared_ptr<MessageRing> ring_;
};

}  // namespace

void StepSharer::Offer(const std::string& machine, internal::v1::BeginEpochResponse* response) {
  const std::lock_guard lock(mutex_);
  rings_ = {};
  offer_.Withdraw();
  if (machine != MachineId()) return;
  if (const absl::Status offered = OfferRings(response); !offered.ok()) {
    spdlog::warn("steps come by messages: {}", offered.ToString());
    rings_ = {};
  }
}

absl::Status StepSharer::OfferRings(internal::v1::BeginEpochResponse* response) {
  ASSIGN_OR_RETURN(rings_.steps, MessageRing::Create());
  ASSIGN_OR_RETURN(rings_.answers, MessageRing::Create());
  RETURN_IF_ERROR(offer_.Make({rings_.steps->fd(), rings_.answers->fd()}));
  response->set_socket(offer_.socket());
  response->set_key(offer_.key());
  return absl::OkStatus();
}

StepRings StepSharer::Take(const std::string& key) {
  const std::lock_guard lock(mutex_);
  return key.empty() || key != offer_.key() ? StepRings() : std::exchange(rings_, {});
}

absl::StatusOr<std::unique_ptr<RingSteps>> RingSteps::Start(StepRings rings, StepRunner* runner) {
  std::unique_ptr<RingSteps> started(new RingSteps(std::move(rings), runner));
  if (started->steps_ != nullptr) {
    ASSIGN_OR_RETURN(started->thread_, StartThread([raw = started.get()] { raw->Run(); }));
  }
  return started;
}

RingSteps::~RingSteps() {
  if (steps_ == nullptr) return;
  steps_->Abort();
  answers_->Abort();
  if (thread_.joinable()) thread_.join();
}

void RingSteps::Run() {
  const auto answers = std::make_shared<AnswerRing>(answers_);
  while (true) {
    const absl::StatusOr<std::string> message = steps_->Read(Deadline::Never());
    if (absl::IsAborted(message.status())) return;
    internal::v1::StepRequest request;
    if (!message.ok() || !request.ParseFromString(*message)) {
      // An answer to no step: its reader ends the epoch, and names this worker.
      internal::v1::StepResponse refusal;
      refusal.set_code(static_cast<int>(absl::StatusCode::kInternal));
      refusal.set_message(
          absl::StrFormat("a step cannot be read: %s", message.ok() ? "it is no message" : message.status().message()));
      spdlog::error("{}", refusal.message());
      answers->Write(refusal);
      return;
    }
    runner_.Submit(std::move(request), [answers](const internal::v1::StepResponse& response) { answers->Write(response); });
  }
}

}  // namespace ferry
