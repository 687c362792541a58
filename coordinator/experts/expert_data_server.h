#pragma once

// Answers requests for experts of workers that do not share this process's memory, on data connections (common/expert_wire.h):
// plan, compute, and whole records. Each connection has a thread. What gRPC offers for the same (ClusterService) is slower, and
// stays for workers that reach no data connection.

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/expert_wire.h"
#include "common/tls/data_connection.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/experts/expert_store.h"

namespace ferry {

class ExpertDataServer {
 public:
  struct Options {
    FirstWords words;  // that a worker says too, but for its incarnation and place
    int max_connections = 0;
  };
  // Takes connections on all of `listeners`, which are not empty. Borrows the store and the exchange. ResourceExhausted: no
  // thread can be started.
  static absl::StatusOr<std::unique_ptr<ExpertDataServer>> Start(std::vector<std::unique_ptr<DataListener>> listeners,
                                                                 const Options& options, const ExpertStore* store,
                                                                 ExpertExchange* exchange);
  // Cuts all connections. No worker waits for an answer any more.
  ~ExpertDataServer();

 private:
  struct Session {
    std::shared_ptr<DataConnection> connection;
    FirstWords worker;
    std::atomic<bool> ended{false};
    std::thread thread;
  };

  ExpertDataServer(std::vector<std::unique_ptr<DataListener>> listeners, const Options& options, const ExpertStore* store,
                   ExpertExchange* exchange)
      : listeners_(std::move(listeners)), options_(options), store_(*store), exchange_(*exchange) {}
  void AcceptAll(DataListener& listener);
  absl::Status Begin(std::shared_ptr<DataConnection> connection);
  void ForgetEnded();
  void Serve(Session& session);
  absl::Status AnswerOne(Session& session, uint64_t number);
  absl::StatusOr<std::span<const std::byte>> RecordFor(WorkerId worker, const ExpertRequest& request);

  const std::vector<std::unique_ptr<DataListener>> listeners_;
  const Options options_;
  const ExpertStore& store_;
  ExpertExchange& exchange_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> accepting_;
  std::mutex mutex_;  // guards what follows
  std::list<Session> sessions_;
};

}  // namespace ferry
