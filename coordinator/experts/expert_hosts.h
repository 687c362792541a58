#pragma once

// The expert hosts of a cluster, as the coordinator knows them: processes of other hosts that hold some of the model's records
// and compute with them. A host offers itself again and again (ExpertHosts::Offer, a call of its own); one that falls silent is
// forgotten. A thread here connects to hosts that are loaded, measures what an exchange costs, and connects again, later each
// time, after a failure.
//
// A host is only an offer of help. The coordinator holds every record, so whatever a host fails to compute is computed here.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/ids.h"
#include "common/repeating_thread.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/held_experts.h"
#include "coordinator/experts/rate_correction.h"
#include "coordinator/experts/remote_engine.h"
#include "kernels/expert_rates.h"

namespace ferry {

// What a host says of itself.
struct ExpertHostOffer {
  Incarnation incarnation;
  std::string machine;       // MachineId
  std::string address;       // of its data connection, as the coordinator reaches it
  std::string kernels;       // KernelsOf
  std::string engine;        // for people
  uint64_t fingerprint = 0;  // of its model; 0: it has asked for none yet
  bool ready = false;        // it holds its records and computes
  double load_progress = 0;
  HeldExperts holds;
  int64_t held_records = 0, held_bytes = 0;
  ExpertRates rates;  // of its engine alone
};

// "AVX-512 VNNI" of an engine's name, the words before a comma: hosts of other kernels do not give the same bits.
std::string KernelsOf(const std::string& engine_name);

class ExpertHost;

class ExpertHosts {
 public:
  struct Options {
    FirstWords words;  // without the incarnation
    std::string kernels, machine;
    std::string certificates;                    // folder of those towards other hosts; empty: hosts of this machine alone
    double memory_bytes_per_second = 0;          // of this machine; 0: unknown
    absl::Duration silence = absl::Seconds(10);  // after which a host is forgotten
  };
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<ExpertHosts>> Create(const Options& options);
  ~ExpertHosts();

  struct Answer {
    int64_t place = 0;  // among the hosts, in order of their first offers
    std::string state;  // for people: "loading", "connected", or why not
  };
  // Thread-safe. FailedPrecondition: a host with another model or other kernels; ResourceExhausted: too many hosts.
  // InvalidArgument names a field that fits no model.
  absl::StatusOr<Answer> Offer(const ExpertHostOffer& offer);

  // The largest request that an exchange carries.
  const MailboxShape& shape() const { return options_.words.shape; }
  // The hosts that may be given work now. Thread-safe.
  std::vector<std::shared_ptr<ExpertHost>> Connected() const;
  std::vector<std::shared_ptr<ExpertHost>> All() const;

 private:
  explicit ExpertHosts(const Options& options) : options_(options) {}
  void Tend();
  void ConnectTo(ExpertHost& host);

  const Options options_;
  mutable std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<ExpertHost>> hosts_;  // by incarnation
  std::unique_ptr<RepeatingThread> thread_;
};

// One host. Thread-safe; the exchange itself belongs to the thread that holds `exchange`.
class ExpertHost {
 public:
  // What `ferry status` shows of it.
  struct Report {
    ExpertHostOffer offer;
    std::string state;
    ExchangeCost cost;
    double row_bytes = 0;                          // of one row or contribution
    StepCorrections::Factors computing, exchange;  // by steps, of the offer's rates and of `cost`
    int64_t exchanges = 0, entries = 0, failures = 0;
    std::string last_failure;
  };

  ExpertHost(int64_t place, ExpertHostOffer offer) : place_(place), offer_(std::move(offer)) {}

  // Its place in a plan of `layer` in a step of so many rows, by rates that steps have corrected; nothing while it is not
  // connected. The engine is used under exchange_mutex().
  std::optional<EnginePlace> Place(int64_t layer, int64_t num_rows) const;
  std::shared_ptr<RemoteEngine> engine() const;
  std::mutex& exchange_mutex() { return exchange_; }
  std::string Name() const;

  // An exchange of this share of a layer laid out so has succeeded within `elapsed` seconds.
  void NoteExchange(const ExpertRequest& share, const ExpertLayout& layout, double elapsed, const RemoteAnswer& answer);
  // A step of so many rows begins.
  void BeginStep(int64_t num_rows);
  // The exchange has failed: the connection is cut, and made again after a pause.
  void NoteFailure(const absl::Status& why);
  Report report() const;

 private:
  friend class ExpertHosts;
  void FollowNetwork(double exchange, double predicted);  // under mutex_

  const int64_t place_;
  std::mutex exchange_;  // locked before mutex_
  mutable std::mutex mutex_;
  ExpertHostOffer offer_;
  Stopwatch since_offer_, since_exchange_, since_connect_;
  bool same_machine_ = false;
  double memory_bytes_per_second_ = 0;
  MailboxShape shape_;
  std::shared_ptr<RemoteEngine> engine_;  // null: not connected
  ExchangeCost cost_;
  StepCorrections computing_, exchange_cost_{0};  // of offer_.rates and of cost_
  int slow_in_a_row_ = 0;                         // exchanges that took longer than any correction of cost_ says
  double fastest_of_slow_ = 0;                    // of those, in seconds
  int64_t exchanges_ = 0, entries_ = 0, failures_ = 0;
  int failures_in_a_row_ = 0;
  Deadline retry_at_ = Deadline::In(absl::ZeroDuration());
  std::string last_failure_;
};

}  // namespace ferry
