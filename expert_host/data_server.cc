#include "expert_host/data_server.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/deadline.h"
#include "common/escaped.h"
#include "common/expert_transfer.h"
#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kAcceptPoll = absl::Milliseconds(200);
constexpr absl::Duration kHandshake = absl::Seconds(3);
// A coordinator measures a connection that it has no work for every few seconds.
constexpr absl::Duration kLongestSilence = absl::Seconds(60);
constexpr absl::Duration kRestOfMessage = absl::Seconds(30);

}  // namespace

absl::StatusOr<std::unique_ptr<DataServer>> DataServer::Start(std::unique_ptr<DataListener> listener, const FirstWords& words,
                                                              ExpertEngine* engine) {
  std::unique_ptr<DataServer> server(new DataServer(std::move(listener), words, engine));
  ASSIGN_OR_RETURN(server->accepting_, StartThread([raw = server.get()] { raw->AcceptAll(); }));
  return server;
}

DataServer::~DataServer() {
  stop_ = true;
  if (accepting_.joinable()) accepting_.join();
}

void DataServer::EndSession() {
  if (connection_ != nullptr) connection_->Cut();
  if (session_.joinable()) session_.join();
  connection_ = nullptr;
}

void DataServer::AcceptAll() {
  while (!stop_) {
    absl::StatusOr<std::unique_ptr<DataConnection>> accepted = listener_->Accept(Deadline::In(kAcceptPoll), kHandshake);
    if (accepted.ok() && *accepted == nullptr) continue;  // nobody connected
    absl::Status status = accepted.status();
    if (status.ok()) status = Greet(**accepted);
    if (!status.ok()) {
      spdlog::warn("a connection was refused: {}", Escaped(status.ToString()));
      continue;
    }
    EndSession();
    connection_ = *std::move(accepted);
    absl::StatusOr<std::thread> thread = StartThread([this] { Serve(*connection_); });
    if (thread.ok()) {
      session_ = *std::move(thread);
      spdlog::info("the coordinator is connected");
    } else {
      spdlog::error("{}", thread.status().ToString());
    }
  }
  EndSession();
}

absl::Status DataServer::Greet(DataConnection& connection) {
  std::array<std::byte, kFirstWordsBytes> said;
  RETURN_IF_ERROR(connection.Receive(said, Deadline::In(kHandshake)));
  RETURN_IF_ERROR(connection.Send(Encode(words_), Deadline::In(kHandshake)));  // the other end says by name what differs
  return CheckFirstWords(said, words_);
}

void DataServer::Serve(DataConnection& connection) {
  absl::Status status;
  for (uint64_t number = 1; status.ok() && !stop_; ++number) status = AnswerOne(connection, number);
  connection.Cut();
  if (!stop_) spdlog::info("the coordinator's connection has ended: {}", Escaped(status.ToString()));
}

absl::Status DataServer::AnswerOne(DataConnection& connection, uint64_t number) {
  ASSIGN_OR_RETURN(ReceivedRequest received,
                   ReceiveRequest(connection, words_.shape, number, kHostKinds, Deadline::In(kLongestSilence), kRestOfMessage));
  std::vector<float> contributions(received.header.num_entries * static_cast<size_t>(words_.shape.n_embd));
  const Stopwatch computing;
  absl::Status status;
  if (received.header.kind == WireKind::kCompute) status = engine_.Compute(received.request, received.rows, contributions);
  return SendAnswer(connection, received.header, status, std::as_bytes(std::span(contributions)), computing.Seconds(),
                    Deadline::In(kRestOfMessage));
}

}  // namespace ferry
