#pragma once

// A whole coordinator: model, experts, workers, scheduler and services.

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "coordinator/options.h"

namespace ferry {

class Server {
 public:
  // Opens the model, plans the placement, and listens. From here on the services answer; health is NOT_SERVING and GetServerInfo
  // says "loading". `options` have passed CheckOptions.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const CoordinatorOptions& options);
  virtual ~Server() = default;

  // "127.0.0.1:8090", with the port in use.
  virtual const std::string& address() const = 0;
  virtual int port() const = 0;
  // "unix:/...": where workers of this host come in.
  virtual std::string cluster_address() const = 0;
  // The files that it reads and that nothing may replace: the model's, keys, certificates. Empty names count as none.
  virtual std::vector<std::string> inputs() const = 0;

  // Fills the expert store, then admits workers. Takes the time of reading the model; logs the progress once a second.
  virtual absl::Status Load() = 0;
  // After Load: until the first epoch. DeadlineExceeded says which workers are missing.
  virtual absl::Status WaitUntilServing(absl::Time deadline) = 0;
  // Refuses new requests, finishes accepted ones within drain_timeout, ends the workers, and stops listening. Idempotent. Errors:
  // the trace could not be written.
  virtual absl::Status Drain() = 0;
};

}  // namespace ferry
