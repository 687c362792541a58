#pragma once

// Answers a coordinator's requests for experts on the data connection of this host (common/expert_wire.h). One
// coordinator at a time: a new connection ends the one before, which its coordinator may have given up without a word.

#include <atomic>
#include <memory>
#include <thread>

#include "common/expert_wire.h"
#include "common/tls/data_connection.h"
#include "coordinator/experts/expert_engine.h"

namespace ferry {

class DataServer {
 public:
  // Borrows the engine. `words`: what a coordinator has to say as well. ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<DataServer>> Start(std::unique_ptr<DataListener> listener, const FirstWords& words,
                                                           ExpertEngine* engine);
  ~DataServer();

 private:
  DataServer(std::unique_ptr<DataListener> listener, const FirstWords& words, ExpertEngine* engine)
      : listener_(std::move(listener)), words_(words), engine_(*engine) {}
  void AcceptAll();
  void Serve(DataConnection& connection);
  absl::Status Greet(DataConnection& connection);
  absl::Status AnswerOne(DataConnection& connection, uint64_t number);
  void EndSession();

  const std::unique_ptr<DataListener> listener_;
  const FirstWords words_;
  ExpertEngine& engine_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<DataConnection> connection_;  // of the session, as what follows; of the accepting thread
  std::thread session_;
  std::thread accepting_;
};

}  // namespace ferry
