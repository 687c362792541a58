#pragma once

// A data connection to the coordinator for one request about experts at a time (common/expert_wire.h). Of one thread, but for
// Stop().

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "common/deadline.h"
#include "common/expert_wire.h"
#include "common/listen_address.h"
#include "common/status.h"
#include "common/tls/data_connection.h"

namespace ferry {

class ExpertCall {
 public:
  ExpertCall(const ListenAddress& address, const DataIdentity& identity, const FirstWords& words)
      : address_(address), identity_(identity), words_(words) {}

  // Connects, unless there is a connection. Errors of DataConnection::Connect; FailedPrecondition: the coordinator says other
  // first words.
  absl::Status Connect(Deadline deadline);
  // Sends a request, over a new connection if the last one failed. `rows` [num_rows, n_embd] of a computation or a probe. Errors
  // of Connect; Unavailable: the coordinator is gone. Answer follows each one that returned OK.
  absl::Status Ask(WireKind kind, const ExpertRequest& request, std::span<const float> rows, Deadline deadline);
  // The answer's body, as many bytes as expert_wire.h says for the kind. The coordinator's own errors; Unavailable: it is gone;
  // DeadlineExceeded: it did not answer in time; InvalidArgument: it answered something else. The connection is given up after
  // all of these but the coordinator's own.
  absl::Status Answer(std::span<std::byte> body, Deadline deadline);
  // Any thread: ends what runs, and every later call, with an error.
  void Stop();

 private:
  absl::StatusOr<std::shared_ptr<DataConnection>> Connected(Deadline deadline);
  absl::Status GiveUp(const absl::Status& why);

  const ListenAddress address_;
  const DataIdentity identity_;
  const FirstWords words_;
  RequestHeader sent_;  // the last one on this connection
  std::mutex mutex_;    // guards what follows
  bool stopped_ = false;
  std::shared_ptr<DataConnection> connection_;  // null: none, or the last one failed
};

}  // namespace ferry
