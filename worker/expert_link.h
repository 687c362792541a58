#pragma once

// How a worker reaches experts in the coordinator's memory: it asks for a plan of where to compute them, has the coordinator
// compute some, and fetches the records of others. expert_link_shm.cc reads records in shared memory; expert_link_data.cc brings
// them over data connections and expert_link_grpc.cc over gRPC, into host buffers.
//
// Only the compute thread uses it. Both ends check the ids in a request.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/exchange_cost.h"
#include "common/expert_wire.h"
#include "common/ids.h"
#include "common/listen_address.h"
#include "common/model/expert_layout.h"
#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "common/tls/data_connection.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class Ops;

struct ExpertId {
  int32_t layer = 0;
  int32_t expert = 0;
  auto operator<=>(const ExpertId&) const = default;
};

// One computation on the host: `rows` inputs and the experts they go through.
struct HostRequest {
  uint64_t step = 0;
  int32_t layer = 0;
  int32_t num_rows = 0;
  std::span<const ActivatedExpert> uses;  // ids increasing; tokens of all = entry_rows.size()
  std::span<const int32_t> entry_rows;    // input row of each entry, grouped by use in order
};

class ExpertLink {
 public:
  virtual ~ExpertLink() = default;
  virtual std::string name() const = 0;  // "shm", "tcp", "grpc"

  // Asks the coordinator's planner where to compute each of `uses`, the experts that num_rows rows activate. Bit i of `helpers`:
  // worker i may compute some; the links between hosts leave helpers out. Unavailable or DeadlineExceeded: the coordinator does
  // not answer. Aborted: the coordinator has given up this worker or the step.
  virtual absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                        std::span<const ActivatedExpert> uses, uint32_t helpers,
                                                        Deadline deadline) = 0;

  // Computations on the host, at most max_running() at once: the caller fills HostRows(n) [n, n_embd], calls StartCompute, and
  // calls FinishCompute exactly once for each start that returned OK. FinishCompute waits for the oldest one and returns its
  // contributions [entries, n_embd], valid until the next start.
  virtual int max_running() const { return 1; }
  virtual int64_t max_rows() const = 0;                     // of one computation
  virtual int64_t max_entries() const = 0;                  // of one computation
  virtual std::span<float> HostRows(int64_t num_rows) = 0;  // num_rows <= max_rows()
  virtual absl::Status StartCompute(const HostRequest& request) = 0;
  virtual absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) = 0;
  // Whether FinishCompute would return at once. A link that cannot tell says no.
  virtual bool Answered() const { return false; }

  // Measures what such a computation costs beside itself; not while one runs. Zeros: the coordinator's memory is shared.
  virtual absl::StatusOr<ExchangeCost> MeasureExchange(Deadline /*deadline*/) { return ExchangeCost(); }

  // Where the record lies in the coordinator's memory, for as long as this link lives. FailedPrecondition: that memory is not
  // shared.
  virtual absl::StatusOr<std::span<const std::byte>> RecordInPlace(ExpertId id) const = 0;

  // Brings a record into host memory that Ops::CopyAsync can read. Records arrive roughly in the order of calls. The link holds a
  // limited number of them: later ones arrive as earlier ones are released.
  virtual absl::Status AskRecord(uint64_t step, ExpertId id) = 0;
  // Whether WaitRecord would return at once, with the record or an error.
  virtual bool RecordHere(ExpertId id) = 0;
  // Waits for a record that was asked for; its bytes are complete, checked, and valid until ReleaseRecord. DataLoss: it came
  // damaged or cut short. InvalidArgument: the coordinator sent another record. DeadlineExceeded: it did not come. The caller
  // releases it after an error too.
  virtual absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, Deadline deadline) = 0;
  // Releases a record; one that has not arrived is given up.
  virtual void ReleaseRecord(ExpertId id) = 0;
};

// The link through memory shared with a coordinator on this host.
struct ShmLinkOptions {
  std::string descriptor_socket, descriptor_key;
  MailboxShape mailbox;
  Incarnation incarnation;
  ArenaLayout arena;  // of the whole model
};
// Maps the arena read-only. With `pin`, since this worker will copy records, also pins it with `ops`; a failure to pin is logged
// as a warning, and copies are slower. Unavailable or NotFound: the coordinator does not hand the memory out.
absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectShmLink(const ShmLinkOptions& options, Ops* ops, bool pin, Deadline deadline);

// The link over gRPC, for hosts that hold no arena.
struct GrpcLinkOptions {
  uint32_t worker_id = 0;
  Incarnation incarnation;
  ArenaLayout arena;
  int64_t n_embd = 0;
  int64_t max_rows = 0, max_entries = 0;  // of one computation; lowered so that a message stays below 32 MiB
  int num_fetchers = 2;                   // streams of records at once
  int num_buffers = 4;                    // records in host memory at once
  bool records = true;                    // false: this worker never asks for records
};
// `cluster` must outlive the link.
absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectGrpcLink(const GrpcLinkOptions& options,
                                                            internal::v1::Cluster::StubInterface* cluster, Ops* ops);

// The link over data connections of the cluster (common/expert_wire.h), for hosts that hold no arena: faster than gRPC, which
// hands each message from thread to thread.
struct DataLinkOptions {
  ListenAddress address;  // where the coordinator answers
  DataIdentity identity;
  FirstWords words;  // this worker's
  ArenaLayout arena;
  int num_fetchers = 2;  // connections for records
  int num_buffers = 4;   // records in host memory at once
  bool records = true;   // false: this worker never asks for records
};
// Connects once, so that a coordinator that cannot be reached this way is noticed here. Errors of DataConnection::Connect;
// FailedPrecondition: the coordinator has another model or other sizes; ResourceExhausted: no thread can be started.
absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectDataLink(const DataLinkOptions& options, Ops* ops, Deadline deadline);

}  // namespace ferry
