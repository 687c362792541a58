#pragma once

// Where a worker takes the data connection of the worker before it (worker/stage_link_tcp.h). It listens from the first offer on,
// and takes a connection only while an offer waits: one that shows the offer's key, which went over gRPC.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "common/deadline.h"
#include "common/listen_address.h"
#include "common/status.h"
#include "common/tls/data_connection.h"
#include "worker/activation_wire.h"

namespace ferry {

class ActivationListener {
 public:
  // `at`: port 0 is any.
  ActivationListener(ListenAddress at, DataIdentity identity) : at_(std::move(at)), identity_(std::move(identity)) {}
  ~ActivationListener();

  struct Offer {
    ListenAddress address;  // with the port in use
    std::string key;
  };
  // Expects one connection that says `words`, to which a key is added, and forgets the offer before. FailedPrecondition: it
  // cannot listen; ResourceExhausted: no thread can be started. Thread-safe, as Take.
  absl::StatusOr<Offer> Expect(ActivationWords words);
  // The connection that showed `key`. Aborted: there is no such offer any more. DeadlineExceeded: it did not come. Cancelled:
  // `cancelled` returned true.
  absl::StatusOr<std::unique_ptr<DataConnection>> Take(const std::string& key, Deadline deadline,
                                                       const std::function<bool()>& cancelled);

 private:
  void AcceptAll();
  absl::Status AcceptOne();

  const ListenAddress at_;
  const DataIdentity identity_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stop_ = false;
  std::unique_ptr<DataListener> listener_;  // null: it does not listen yet; the thread's own afterwards
  std::optional<ActivationWords> expected_;
  Deadline expected_until_ = Deadline::Never();
  std::unique_ptr<DataConnection> came_;  // null: the expected one did not come yet
  std::thread thread_;
};

}  // namespace ferry
