#pragma once

// gRPC's health protocol (grpc.health.v1), which needs no key. gRPC's own service reads messages of up to the largest size at
// once, however many calls ask; this one reads in turns.

#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "coordinator/bounded_service.h"
#include "grpc/health/v1/health.pb.h"

namespace ferry {

class HealthService final : public BoundedService {
 public:
  // `services`: the full names of those that have the status of the server, which is not serving yet.
  HealthService(MessageReads* reads, std::vector<std::string> services);

  void SetServing(bool serving);

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                  grpc::ByteBuffer* response);
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message);
  bool Knows(const std::string& service) const;

  const std::vector<std::string> services_;
  std::mutex mutex_;
  Status status_ = grpc::health::v1::HealthCheckResponse::NOT_SERVING;  // guarded by mutex_
  std::set<Watcher*> watchers_;                                         // likewise
};

}  // namespace ferry
