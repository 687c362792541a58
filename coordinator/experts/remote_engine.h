#pragma once

// The engine of another host, over a data connection: its requests and answers (common/expert_wire.h). One thread at a time, but
// for Cut(). After an error the connection is of no more use.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/exchange_cost.h"
#include "common/expert_wire.h"
#include "common/tls/data_connection.h"

namespace ferry {

struct RemoteAnswer {
  double computed_seconds = 0;  // by the other host
  bool waited = false;          // the caller came first: it waited for the answer to begin
};

class RemoteEngine {
 public:
  // Errors of DataConnection::Connect and CheckFirstWords.
  static absl::StatusOr<std::unique_ptr<RemoteEngine>> Connect(const ListenAddress& address, const DataIdentity& identity,
                                                               const FirstWords& words, Deadline deadline);

  // Measures the connection with requests that compute nothing.
  absl::StatusOr<ExchangeCost> Measure(Deadline deadline);

  // Sends `request`, whose entries are grouped by use, and those rows of `rows` [request.num_rows, n_embd] that it names.
  absl::Status Start(const ExpertRequest& request, std::span<const float> rows, Deadline deadline);
  // The answer to the request that was started: entry i goes to row outs[i] of `contributions` [*, n_embd]. The other host's
  // error; Unavailable, DeadlineExceeded: its answer did not come; InvalidArgument: it is none to this request.
  absl::StatusOr<RemoteAnswer> Finish(std::span<const int32_t> outs, std::span<float> contributions, Deadline deadline);

  void Cut() { connection_->Cut(); }

 private:
  RemoteEngine(std::unique_ptr<DataConnection> connection, const FirstWords& words)
      : connection_(std::move(connection)), words_(words) {}
  absl::Status Send(const RequestHeader& header, std::span<const uint32_t> ids, Deadline deadline);
  absl::StatusOr<double> Probe(int64_t rows, Deadline deadline);

  const std::unique_ptr<DataConnection> connection_;
  const FirstWords words_;
  RequestHeader sent_;
  std::vector<std::byte> frame_;  // of the request, in one piece: small ones leave in one packet
};

}  // namespace ferry
