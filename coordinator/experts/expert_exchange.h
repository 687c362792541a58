#pragma once

// Answers what workers ask about experts, over shared memory and over gRPC alike: plan, compute, fetch. One mailbox and one
// thread a shared-memory worker. Requests of another incarnation than the worker's are refused with Aborted.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/expert_store.h"

namespace ferry {

// What the planner needs to know of a worker.
struct ExchangePeer {
  WorkerId worker;
  Incarnation incarnation;
  int64_t first_layer = 0, end_layer = 0;
  int64_t num_slots = 0;
  double link_bytes_per_second = 0;
  bool ship_all = false;               // --no-ooae
  std::vector<ExpertPlace> overrides;  // one a layer of the model; kResident: none, kShip: never host, kHost: never shipped
};

class ExpertExchange {
 public:
  // Borrows both. `socket_name`: abstract Unix socket of this coordinator.
  static absl::StatusOr<std::unique_ptr<ExpertExchange>> Create(const ExpertStore* store, ExpertEngine* engine,
                                                                PlannerRates rates, const std::string& socket_name);
  ~ExpertExchange();

  const std::string& socket_name() const;
  // A worker joins, replacing an earlier incarnation of the same id.
  void AddPeer(const ExchangePeer& peer);
  // Its slots, and its link's rate alone, once it knows them.
  void UpdatePeer(WorkerId worker, int64_t num_slots, double link_bytes_per_second);
  // What plans divide by from now on: the host's rates beside the links, and the link's rate beside the host, where that was
  // measured, for whoever has worker `i`'s place. Otherwise each link's rate alone counts.
  void SetRates(const PlannerRates& host, const std::vector<double>& links);
  // Makes a mailbox for it, starts answering it, and returns the key under which the worker fetches the arena's and the
  // mailbox's descriptors, in this order.
  absl::StatusOr<std::string> OpenMailbox(WorkerId worker, const MailboxShape& shape);
  void RemovePeer(WorkerId worker);  // stops its mailbox
  void BeginEpoch();                 // steps are numbered from 1 again

  // The exchanges themselves; for gRPC callers. Thread-safe. Aborted: stale incarnation; InvalidArgument names the field, also
  // for a layer that the worker does not own.
  absl::StatusOr<std::vector<ExpertPlace>> Plan(WorkerId worker, const ExpertRequest& request);
  absl::Status Compute(WorkerId worker, const ExpertRequest& request, std::span<float> rows, std::span<float> contributions);
  // Checks a request for records; the caller then reads them from the store.
  absl::Status CheckFetch(WorkerId worker, const ExpertRequest& request);

 private:
  struct Peer;
  ExpertExchange(const ExpertStore* store, ExpertEngine* engine, PlannerRates rates,
                 std::unique_ptr<DescriptorServer> descriptors);
  double LinkRateLocked(const ExchangePeer& peer) const;
  absl::StatusOr<std::shared_ptr<Peer>> Find(WorkerId worker);
  void Serve(Peer& peer);
  // Refuses what is not the peer's: another incarnation, a step that is over, a layer it does not own.
  absl::Status Admit(Peer& peer, const ExpertRequest& request);
  std::vector<ExpertPlace> Divide(Peer& peer, const ExpertRequest& request);

  const ExpertStore& store_;
  ExpertEngine& engine_;
  std::unique_ptr<DescriptorServer> descriptors_;
  std::mutex mutex_;
  PlannerRates rates_;                     // the host's
  std::vector<double> links_beside_host_;  // by worker; 0 or missing: not measured
  std::map<WorkerId, std::shared_ptr<Peer>> peers_;
};

}  // namespace ferry
