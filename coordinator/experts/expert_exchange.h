#pragma once

// Answers workers' requests about experts, over shared memory and over gRPC: plan, compute, fetch. Each shared-memory worker has
// kMailboxesOfAWorker mailboxes here, and a thread for each. A request of an earlier incarnation of a worker gets Aborted.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/expert_computer.h"
#include "coordinator/experts/expert_misses.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/experts/help_offer.h"
#include "coordinator/experts/rate_correction.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

// A worker, as far as the planner needs it.
struct ExchangePeer {
  WorkerId worker;
  Incarnation incarnation;
  int64_t first_layer = 0, end_layer = 0;
  int64_t num_slots = 0;
  double link_bytes_per_second = 0;
  bool ship_all = false;               // --no-ooae
  bool has_gpu = false;                // workers help others of their own kind alone: results would differ
  std::vector<ExpertPlace> overrides;  // one a layer of the model; kResident: none, kShip: never host, kHost: never shipped
  ShareWay way = {};                   // to the coordinator's engines and back
};
// What a worker measures at its start.
struct PeerRates {
  int64_t num_slots = 0;
  double link_bytes_per_second = 0;
  ExchangeCost exchange = {};  // zeros: it shares the coordinator's memory
};

// Whether workers of one host compute shares of each other's layers.
enum class HelpMode {
  kAuto,  // as the planner predicts to be fastest
  kEven,  // for tests and measurements: in turns among all that have nothing else to do
  kOff,
};
// InvalidArgument: none of auto, even, off.
absl::StatusOr<HelpMode> ParseHelpMode(const std::string& text);

class ExpertExchange {
 public:
  // Borrows both. `socket_name`: abstract Unix socket of this coordinator.
  static absl::StatusOr<std::unique_ptr<ExpertExchange>> Create(const ExpertStore* store, ExpertComputer* engine,
                                                                PlannerRates rates, const std::string& socket_name);
  ~ExpertExchange();

  const std::string& socket_name() const;
  // From now on `misses` hears of every expert that is copied by a plan or computed by the host. Before the first peer.
  void CountIn(ExpertMisses* misses) { misses_ = misses; }
  // A worker joins, replacing an earlier incarnation of the same id.
  void AddPeer(const ExchangePeer& peer);
  // Sets what the worker has reported.
  void UpdatePeer(WorkerId worker, const PeerRates& rates);
  // Sets the rates of later plans: the host's beside the links, and `links[i]`, the rate of the link to place i beside the host.
  // A place without a measured rate uses its link's rate alone. `device_flops[i]`: of expert products on place i's device; 0 or
  // missing: not known.
  void SetRates(const PlannerRates& host, const std::vector<double>& links, const std::vector<double>& device_flops = {});
  // Makes the mailboxes of a worker and starts to answer them. Returns the key with which the worker fetches the descriptors of
  // the arena and the kMailboxesOfAWorker mailboxes, in this order.
  absl::StatusOr<std::string> OpenMailboxes(WorkerId worker, const MailboxShape& shape);
  void RemovePeer(WorkerId worker);  // and its mailboxes
  // How workers help each other; before the first epoch.
  void SetHelp(HelpMode mode) { help_mode_ = mode; }
  // Makes a board for each worker that has mailboxes, for the epoch that begins, and withdraws those of the one before. No keys:
  // fewer than two workers could help each other, or there is no memory for boards, which is logged.
  HelpOffer OfferHelp(const HelpBoardShape& shape);
  void BeginEpoch();  // steps are numbered from 1 again
  // The newest step of the epoch that workers were sent, and its rows. A request of one beyond it is refused: it would make the
  // real ones "over".
  void NoteStep(uint64_t step, int64_t num_rows);
  // A worker has computed a step of so many rows: its copies correct its link's rate in later plans, where that was measured.
  void NoteCopies(WorkerId worker, int64_t num_rows, const v1::ExpertCounters& counters);
  // How many times as long as by the measured rate copies to a worker take in steps; 0: steps have not shown it.
  double LinkSlowdown(WorkerId worker) const;

  // The three requests, for gRPC callers. Thread-safe. Aborted: an earlier incarnation or step. InvalidArgument names the field,
  // also when the worker does not own the layer.
  absl::StatusOr<std::vector<ExpertPlace>> Plan(WorkerId worker, const ExpertRequest& request);
  absl::Status Compute(WorkerId worker, const ExpertRequest& request, std::span<float> rows, std::span<float> contributions);
  // Checks a request for records; the caller then reads them from the store.
  absl::Status CheckFetch(WorkerId worker, const ExpertRequest& request);

 private:
  struct Peer;
  ExpertExchange(const ExpertStore* store, ExpertComputer* engine, PlannerRates rates,
                 std::unique_ptr<DescriptorServer> descriptors);
  double MeasuredLinkLocked(WorkerId worker) const;
  double LinkRateLocked(const Peer& peer) const;
  double FlopsLocked(WorkerId worker) const;
  absl::StatusOr<std::shared_ptr<Peer>> Find(WorkerId worker);
  void Serve(Peer& peer, ExpertMailbox& mailbox);
  // Refuses another incarnation than the peer's, a step that is over, and a layer that the peer does not own.
  absl::Status Admit(Peer& peer, const ExpertRequest& request);
  std::vector<ExpertPlace> PlanFor(Peer& peer, const ExpertRequest& request);
  // The workers of `request.helpers` that may help `peer`, and their costs, by the same index.
  struct Helpers {
    std::vector<WorkerId> workers;
    std::vector<HelperPlace> places;
  };
  Helpers HelpersLocked(const Peer& peer, const ExpertRequest& request, const ExpertLayout& layout) const;
  absl::Status MakeBoards(HelpOffer* offer);
  // The peer whose plan or request for records this is, checked and admitted.
  absl::StatusOr<std::shared_ptr<Peer>> AdmitWithoutRows(WorkerId worker, const ExpertRequest& request);
  void CountShipped(const ExpertRequest& request, const std::vector<ExpertPlace>& places);
  void CountComputed(const ExpertRequest& request);

  const ExpertStore& store_;
  ExpertComputer& engine_;
  ExpertMisses* misses_ = nullptr;  // null: nobody counts
  std::unique_ptr<DescriptorServer> descriptors_;
  std::atomic<uint64_t> newest_step_{UINT64_MAX};  // before the first epoch nothing is known
  mutable std::mutex mutex_;
  PlannerRates rates_;                     // the host's
  std::vector<double> links_beside_host_;  // by worker; 0 or missing: not measured
  std::vector<double> device_flops_;       // likewise
  std::map<WorkerId, std::shared_ptr<Peer>> peers_;
  HelpMode help_mode_ = HelpMode::kOff;  // constant once workers come
  HelpBoardShape help_shape_;            // of this epoch's boards
  std::vector<std::string> help_keys_;   // that this epoch's workers may still ask with
};

}  // namespace ferry
