#include "coordinator/experts/expert_data_server.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "common/deadline.h"
#include "common/escaped.h"
#include "common/expert_transfer.h"
#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kDataAcceptPoll = absl::Milliseconds(200);
constexpr absl::Duration kDataHandshake = absl::Seconds(3);
constexpr absl::Duration kDataPatience = absl::Seconds(30);  // for the rest of a request, and for a worker that does not read

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertDataServer>> ExpertDataServer::Start(std::vector<std::unique_ptr<DataListener>> listeners,
                                                                          const Options& options, const ExpertStore* store,
                                                                          ExpertExchange* exchange) {
  std::unique_ptr<ExpertDataServer> server(new ExpertDataServer(std::move(listeners), options, store, exchange));
  for (const std::unique_ptr<DataListener>& listener : server->listeners_) {
    ASSIGN_OR_RETURN(std::thread thread,
                     StartThread([raw = server.get(), listener = listener.get()] { raw->AcceptAll(*listener); }));
    server->accepting_.push_back(std::move(thread));
  }
  return server;
}

ExpertDataServer::~ExpertDataServer() {
  stop_ = true;
  for (std::thread& thread : accepting_) thread.join();
  for (Session& session : sessions_) session.connection->Cut();
  for (Session& session : sessions_) session.thread.join();
}

void ExpertDataServer::AcceptAll(DataListener& listener) {
  while (!stop_) {
    absl::StatusOr<std::unique_ptr<DataConnection>> accepted = listener.Accept(Deadline::In(kDataAcceptPoll), kDataHandshake);
    ForgetEnded();
    if (accepted.ok() && *accepted == nullptr) continue;  // nobody connected
    absl::Status status = accepted.status();
    if (status.ok()) status = Begin(*std::move(accepted));
    if (!status.ok()) spdlog::warn("a data connection for experts was refused: {}", Escaped(status.ToString()));
  }
}

absl::Status ExpertDataServer::Begin(std::shared_ptr<DataConnection> connection) {
  std::array<std::byte, kFirstWordsBytes> said;
  RETURN_IF_ERROR(connection->Receive(said, Deadline::In(kDataHandshake)));
  const absl::StatusOr<FirstWords> worker = ParseFirstWords(said, options_.words);
  // The other end says by name what differs.
  RETURN_IF_ERROR(connection->Send(Encode(worker.value_or(options_.words)), Deadline::In(kDataHandshake)));
  RETURN_IF_ERROR(worker.status());
  const std::lock_guard lock(mutex_);
  if (static_cast<int>(sessions_.size()) >= options_.max_connections) {
    return ResourceExhausted("%d connections are open", sessions_.size());
  }
  Session& session = sessions_.emplace_back();
  session.connection = std::move(connection);
  session.worker = *worker;
  absl::StatusOr<std::thread> thread = StartThread([this, &session] { Serve(session); });
  if (!thread.ok()) {
    sessions_.pop_back();
    return thread.status();
  }
  session.thread = *std::move(thread);
  return absl::OkStatus();
}

void ExpertDataServer::ForgetEnded() {
  std::list<Session> ended;
  {
    const std::lock_guard lock(mutex_);
    for (auto session = sessions_.begin(); session != sessions_.end();) {
      const auto next = std::next(session);
      if (session->ended) ended.splice(ended.end(), sessions_, session);
      session = next;
    }
  }
  for (Session& session : ended) session.thread.join();
}

void ExpertDataServer::Serve(Session& session) {
  absl::Status status;
  for (uint64_t number = 1; status.ok() && !stop_; ++number) status = AnswerOne(session, number);
  session.connection->Cut();
  if (!stop_ && !absl::IsUnavailable(status)) {  // which is a worker that has ended
    spdlog::warn("worker {}'s data connection is given up: {}", session.worker.worker, Escaped(status.ToString()));
  }
  session.ended = true;
}

// Errors are the connection's, which is of no use afterwards.
absl::Status ExpertDataServer::AnswerOne(Session& session, uint64_t number) {
  // An idle worker says nothing for days. The kernel notices a host that is gone, and ~ExpertDataServer cuts the connection.
  ASSIGN_OR_RETURN(ReceivedRequest received, ReceiveRequest(*session.connection, options_.words.shape, number, kCoordinatorKinds,
                                                            Deadline::Never(), kDataPatience));
  received.request.incarnation = session.worker.incarnation;
  const WorkerId worker(static_cast<int32_t>(session.worker.worker));
  const auto answer = [&](const absl::Status& status, std::span<const std::byte> body) {
    return SendAnswer(*session.connection, received.header, status, body, /*seconds=*/0, Deadline::In(kDataPatience));
  };
  switch (received.header.kind) {
    case WireKind::kPlan: {
      const absl::StatusOr<std::vector<ExpertPlace>> places = exchange_.Plan(worker, received.request);
      return answer(places.status(), places.ok() ? std::as_bytes(std::span(*places)) : std::span<const std::byte>());
    }
    case WireKind::kRecord: {
      const absl::StatusOr<std::span<const std::byte>> record = RecordFor(worker, received.request);
      return answer(record.status(), record.value_or(std::span<const std::byte>()));
    }
    case WireKind::kProbe:
    case WireKind::kCompute:
      break;
  }
  std::vector<float> contributions(received.header.num_entries * static_cast<size_t>(options_.words.shape.n_embd));
  absl::Status computed;
  if (received.header.kind == WireKind::kCompute) {
    computed = exchange_.Compute(worker, received.request, received.rows, contributions);
  }
  return answer(computed, std::as_bytes(std::span(contributions)));
}

absl::StatusOr<std::span<const std::byte>> ExpertDataServer::RecordFor(WorkerId worker, const ExpertRequest& request) {
  RETURN_IF_ERROR(exchange_.CheckFetch(worker, request));
  if (request.uses.empty()) return InvalidArgument("a record of no expert was asked for");
  return store_.Record(request.layer, request.uses[0].expert);
}

}  // namespace ferry
