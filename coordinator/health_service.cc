#include "coordinator/health_service.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "coordinator/raw_message.h"

namespace ferry {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr WireBounds kHealthBounds = {.max_fields = 4};
constexpr size_t kMaxWatchers = 1024;

absl::Status SerializeStatus(HealthCheckResponse::ServingStatus status, grpc::ByteBuffer* bytes) {
  HealthCheckResponse response;
  response.set_status(status);
  return Serialize(response, bytes);
}

}  // namespace

// One call of Watch. All members are guarded by the service's mutex.
class HealthService::Watcher final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit Watcher(HealthService* service) : service_(*service) {}

  // With the mutex.
  void TellLocked(Status status) {
    next_ = status;
    WriteLocked();
  }
  void End(const absl::Status& status) {
    const std::lock_guard lock(service_.mutex_);
    EndLocked(status);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(service_.mutex_);
    writes_ = false;
    if (!ok) return EndLocked(Cancelled("the client is gone"));
    if (end_) return FinishLocked();
    WriteLocked();
  }
  void OnCancel() override { End(Cancelled("the call was cancelled")); }
  void OnDone() override {
    {
      const std::lock_guard lock(service_.mutex_);
      service_.watchers_.erase(this);
    }
    delete this;
  }

 private:
  void WriteLocked() {
    if (writes_ || end_ || !next_) return;
    const absl::Status written = SerializeStatus(*std::exchange(next_, std::nullopt), &message_);
    if (!written.ok()) return EndLocked(written);
    writes_ = true;
    StartWrite(&message_);
  }
  void EndLocked(const absl::Status& status) {
    if (!end_) end_ = status;
    if (!writes_) FinishLocked();
  }
  void FinishLocked() {
    if (!std::exchange(finished_, true)) Finish(ToGrpcStatus(*end_));
  }

  HealthService& service_;
  grpc::ByteBuffer message_;
  std::optional<Status> next_;       // not yet written
  std::optional<absl::Status> end_;  // what the call ends with
  bool writes_ = false, finished_ = false;
};

HealthService::HealthService(MessageReads* reads, std::vector<std::string> services)
    : BoundedService(reads), services_(std::move(services)) {
  AddUnary("/grpc.health.v1.Health/Check", std::bind_front(&HealthService::Check, this));
  AddStream("/grpc.health.v1.Health/Watch", std::bind_front(&HealthService::Watch, this));
}

bool HealthService::Knows(const std::string& service) const {
  return service.empty() || std::find(services_.begin(), services_.end(), service) != services_.end();
}

void HealthService::SetServing(bool serving) {
  const std::lock_guard lock(mutex_);
  const Status status = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  if (std::exchange(status_, status) == status) return;
  for (Watcher* const watcher : watchers_) watcher->TellLocked(status);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                               grpc::ByteBuffer* response) {
  HealthCheckRequest request;
  absl::Status status = ParseBounded(*message, kHealthBounds, &request);
  if (status.ok() && !Knows(request.service())) status = absl::NotFoundError("the server has no such service");
  if (status.ok()) {
    const std::lock_guard lock(mutex_);
    status = SerializeStatus(status_, response);
  }
  return Finish(context, status);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* HealthService::Watch(grpc::CallbackServerContext*, const grpc::ByteBuffer* message) {
  Watcher* const watcher = new Watcher(this);
  HealthCheckRequest request;
  const absl::Status parsed = ParseBounded(*message, kHealthBounds, &request);
  if (!parsed.ok()) {
    watcher->End(parsed);
    return watcher;
  }
  std::unique_lock lock(mutex_);
  if (watchers_.size() >= kMaxWatchers) {
    lock.unlock();
    watcher->End(ResourceExhausted("%d calls watch already", kMaxWatchers));
    return watcher;
  }
  if (Knows(request.service())) {
    watchers_.insert(watcher);
    watcher->TellLocked(status_);
  } else {
    watcher->TellLocked(HealthCheckResponse::SERVICE_UNKNOWN);
  }
  return watcher;
}

}  // namespace ferry
