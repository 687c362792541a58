#include "coordinator/experts/expert_data_server.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "common/deadline.h"
#include "common/escaped.h"
#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kDataAcceptPoll = absl::Milliseconds(200);
constexpr absl::Duration kDataHandshake = absl::Seconds(3);
constexpr absl::Duration kDataPatience = absl::Seconds(30);  // for the rest of a request, and for a worker that does not read

// `body` is of the kind that `header` asked for.
absl::Status SendAnswer(DataConnection& connection, const RequestHeader& header, std::span<const std::byte> body) {
  const auto encoded = Encode(
      AnswerHeader{.number = header.number, .step = header.step, .layer = header.layer, .num_entries = header.num_entries});
  RETURN_IF_ERROR(connection.Send(encoded, Deadline::In(kDataPatience)));
  return body.empty() ? absl::OkStatus() : connection.Send(body, Deadline::In(kDataPatience));
}

absl::Status SendError(DataConnection& connection, const RequestHeader& header, const absl::Status& why) {
  const std::string text = std::string(why.message()).substr(0, kMaxAnswerText);
  const auto encoded = Encode(AnswerHeader{.number = header.number,
                                           .step = header.step,
                                           .layer = header.layer,
                                           .code = why.code(),
                                           .text_bytes = static_cast<int32_t>(text.size())});
  RETURN_IF_ERROR(connection.Send(encoded, Deadline::In(kDataPatience)));
  return connection.Send(std::as_bytes(std::span(text)), Deadline::In(kDataPatience));
}

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
  DataConnection& connection = *session.connection;
  std::array<std::byte, kHeaderBytes> bytes;
  // An idle worker says nothing for days. The kernel notices a host that is gone, and ~ExpertDataServer cuts the connection.
  RETURN_IF_ERROR(connection.Receive(bytes, Deadline::Never()));
  ASSIGN_OR_RETURN(const RequestHeader header, ParseRequestHeader(bytes, options_.words.shape, number, kCoordinatorKinds));
  std::vector<uint32_t> ids(IdWords(header));
  if (!ids.empty()) RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(ids)), Deadline::In(kDataPatience)));
  ExpertRequest request = RequestOf(header, ids);
  request.incarnation = session.worker.incarnation;
  switch (header.kind) {
    case WireKind::kPlan:
      return Plan(session, header, std::move(request));
    case WireKind::kRecord:
      return SendRecord(session, header, request);
    default:
      return Compute(session, header, request);
  }
}

absl::Status ExpertDataServer::Plan(const Session& session, const RequestHeader& header, ExpertRequest request) {
  const absl::StatusOr<std::vector<ExpertPlace>> places =
      exchange_.Plan(WorkerId(static_cast<int32_t>(session.worker.worker)), request);
  if (!places.ok()) return SendError(*session.connection, header, places.status());
  return SendAnswer(*session.connection, header, std::as_bytes(std::span(*places)));
}

absl::Status ExpertDataServer::Compute(const Session& session, const RequestHeader& header, const ExpertRequest& request) {
  const size_t n_embd = static_cast<size_t>(options_.words.shape.n_embd);
  std::vector<float> rows(header.num_rows * n_embd), contributions(header.num_entries * n_embd);
  if (!rows.empty()) {
    RETURN_IF_ERROR(session.connection->Receive(std::as_writable_bytes(std::span(rows)), Deadline::In(kDataPatience)));
  }
  const absl::Status computed =
      exchange_.Compute(WorkerId(static_cast<int32_t>(session.worker.worker)), request, rows, contributions);
  if (!computed.ok()) return SendError(*session.connection, header, computed);
  return SendAnswer(*session.connection, header, std::as_bytes(std::span(contributions)));
}

absl::Status ExpertDataServer::SendRecord(const Session& session, const RequestHeader& header, const ExpertRequest& request) {
  const absl::Status allowed = exchange_.CheckFetch(WorkerId(static_cast<int32_t>(session.worker.worker)), request);
  if (!allowed.ok()) return SendError(*session.connection, header, allowed);
  if (request.uses.empty()) return SendError(*session.connection, header, InvalidArgument("a record of no expert was asked for"));
  const absl::StatusOr<std::span<const std::byte>> record = store_.Record(request.layer, request.uses[0].expert);
  if (!record.ok()) return SendError(*session.connection, header, record.status());
  return SendAnswer(*session.connection, header, *record);
}

}  // namespace ferry
