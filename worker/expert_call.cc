#include "worker/expert_call.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

namespace ferry {
namespace {

// Up to here a copy costs less than another packet.
constexpr size_t kOnePieceBytes = 64 << 10;
constexpr absl::Duration kConnectPatience = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::shared_ptr<DataConnection>> ExpertCall::Connected(Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return absl::CancelledError("the link is ending");
    if (connection_ != nullptr) return connection_;
  }
  const Deadline soon = std::min(deadline, Deadline::In(kConnectPatience));
  ASSIGN_OR_RETURN(std::unique_ptr<DataConnection> made, DataConnection::Connect(address_, identity_, soon));
  const std::shared_ptr<DataConnection> connection = std::move(made);
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return absl::CancelledError("the link is ending");
    connection_ = connection;
  }
  sent_ = {};
  RETURN_IF_ERROR(connection->Send(Encode(words_), soon));
  std::array<std::byte, kFirstWordsBytes> said;
  RETURN_IF_ERROR(connection->Receive(said, soon));
  RETURN_IF_ERROR(CheckFirstWords(said, words_));
  return connection;
}

absl::Status ExpertCall::GiveUp(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  connection_ = nullptr;
  return Annotate(why, "experts over tcp");
}

absl::Status ExpertCall::Connect(Deadline deadline) {
  const absl::Status connected = Connected(deadline).status();
  return connected.ok() ? connected : GiveUp(connected);
}

absl::Status ExpertCall::Ask(WireKind kind, const ExpertRequest& request, std::span<const float> rows, Deadline deadline) {
  const absl::StatusOr<std::shared_ptr<DataConnection>> connection = Connected(deadline);
  if (!connection.ok()) return GiveUp(connection.status());
  sent_ = {.kind = kind,
           .number = sent_.number + 1,
           .step = request.step,
           .layer = request.layer,
           .num_rows = request.num_rows,
           .num_uses = static_cast<int32_t>(request.uses.size()),
           .num_entries = static_cast<int32_t>(request.entry_rows.size())};
  const absl::Status sent = Send(**connection, EncodeIds(request), rows, deadline);
  return sent.ok() ? sent : GiveUp(sent);
}

absl::Status ExpertCall::Send(DataConnection& connection, std::span<const uint32_t> ids, std::span<const float> rows,
                              Deadline deadline) {
  const std::array<std::byte, kHeaderBytes> header = Encode(sent_);
  const auto append = [this](std::span<const std::byte> bytes) { frame_.insert(frame_.end(), bytes.begin(), bytes.end()); };
  frame_.clear();
  append(header);
  append(std::as_bytes(ids));
  const std::span<const std::byte> behind = std::as_bytes(rows);
  const bool one_piece = behind.size() <= kOnePieceBytes;
  if (one_piece) append(behind);
  RETURN_IF_ERROR(connection.Send(frame_, deadline));
  return one_piece ? absl::OkStatus() : connection.Send(behind, deadline);
}

absl::Status ExpertCall::Answer(std::span<std::byte> body, Deadline deadline) {
  std::shared_ptr<DataConnection> connection;
  {
    const std::lock_guard lock(mutex_);
    connection = connection_;
  }
  if (connection == nullptr) return FailedPrecondition("nothing was asked");
  absl::Status said;
  const absl::Status received = Receive(*connection, body, deadline, &said);
  return received.ok() ? said : GiveUp(received);
}

// `said`: the coordinator's own error, if it answered with one. Errors are the connection's.
absl::Status ExpertCall::Receive(DataConnection& connection, std::span<std::byte> body, Deadline deadline, absl::Status* said) {
  std::array<std::byte, kHeaderBytes> bytes;
  RETURN_IF_ERROR(connection.Receive(bytes, deadline));
  ASSIGN_OR_RETURN(const AnswerHeader answer, ParseAnswerHeader(bytes, sent_));
  if (answer.code == absl::StatusCode::kOk) return connection.Receive(body, deadline);
  std::string text(answer.text_bytes, '\0');
  RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(text)), deadline));
  *said = absl::Status(answer.code, text);
  return absl::OkStatus();
}

void ExpertCall::Stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  if (connection_ != nullptr) connection_->Cut();
}

}  // namespace ferry
