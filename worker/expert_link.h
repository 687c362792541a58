#pragma once

// How a worker reaches the experts: it asks where activated experts should be computed, has the coordinator compute some where
// they lie, and gets the records of others. One implementation a transport: shared memory (expert_link_shm.cc: records are
// read where they lie) and gRPC (expert_link_grpc.cc: records are streamed into host buffers, checked, and read there).
//
// Used by the compute thread alone. Requests carry step and layer; ids are checked by both ends.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/model/expert_layout.h"
#include "common/shm/expert_mailbox.h"
#include "common/status.h"
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
  virtual std::string name() const = 0;  // "shm", "grpc"

  // Where each of `uses`, the experts that num_rows rows go to, should be computed, by the coordinator's planner. Unavailable,
  // DeadlineExceeded: the coordinator does not answer; Aborted: this worker or the step is over.
  virtual absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                        std::span<const ActivatedExpert> uses, absl::Time deadline) = 0;

  // One host computation at a time: fill HostRows(n) [n, n_embd], start, and finish exactly once for each start that was OK.
  // Finish gives the contributions [entries, n_embd], valid until the next start.
  virtual int64_t max_rows() const = 0;                     // rows of one computation
  virtual int64_t max_entries() const = 0;                  // and entries
  virtual std::span<float> HostRows(int64_t num_rows) = 0;  // num_rows <= max_rows()
  virtual absl::Status StartCompute(const HostRequest& request) = 0;
  virtual absl::StatusOr<std::span<const float>> FinishCompute(absl::Time deadline) = 0;

  // Records. Ask brings a record into host memory that Ops::CopyAsync reads. Records come about in the order in which they
  // were asked for, and only as many as there is room for: those that came first have to be released.
  virtual absl::Status AskRecord(uint64_t step, ExpertId id) = 0;
  // Whether WaitRecord would answer at once, with the record or an error.
  virtual bool RecordHere(ExpertId id) = 0;
  // The record that was asked for, whole and checked, until it is released. DataLoss: it came damaged or cut
  // short, InvalidArgument: it is not the one asked for; DeadlineExceeded. After an error it must be released as well.
  virtual absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, absl::Time deadline) = 0;
  // Also for one that has not come yet: it is given up.
  virtual void ReleaseRecord(ExpertId id) = 0;
};

// Shared memory with the coordinator of this host.
struct ShmLinkOptions {
  std::string descriptor_socket, descriptor_key;
  MailboxShape mailbox;
  Incarnation incarnation;
  ArenaLayout arena;  // of the whole model
};
// Maps the arena read-only and pins it with `ops` if that has a use for it (a failure is a warning: copies are slower then).
// `pin`: this worker will copy records. Unavailable, NotFound: the coordinator does not hand the memory out.
absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectShmLink(const ShmLinkOptions& options, Ops* ops, bool pin,
                                                           absl::Time deadline);

// gRPC, for hosts that hold no arena.
struct GrpcLinkOptions {
  uint32_t worker_id = 0;
  Incarnation incarnation;
  ArenaLayout arena;
  int64_t n_embd = 0;
  int64_t max_rows = 0, max_entries = 0;  // of one computation; lowered so that a message stays below 32 MiB
  int num_fetchers = 2;                   // streams of records at once
  int num_buffers = 4;                    // records in host memory at once
  bool records = true;                    // false: this worker never asks for any
};
// `cluster` must outlive the link.
absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectGrpcLink(const GrpcLinkOptions& options,
                                                            internal::v1::Cluster::StubInterface* cluster, Ops* ops);

}  // namespace ferry
