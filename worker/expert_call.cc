#include "worker/expert_call.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/expert_transfer.h"

namespace ferry {
namespace {

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
  RETURN_IF_ERROR(Introduce(*connection, words_, soon));
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
  const std::array<std::byte, kHeaderBytes> header = Encode(sent_);
  const std::vector<uint32_t> ids = kind == WireKind::kProbe ? std::vector<uint32_t>() : EncodeIds(request);
  const std::span<const std::byte> words = std::as_bytes(std::span(ids));
  std::vector<std::byte> head(header.begin(), header.end());
  head.insert(head.end(), words.begin(), words.end());
  const absl::Status sent = SendTogether(**connection, head, std::as_bytes(rows), deadline);
  return sent.ok() ? sent : GiveUp(sent);
}

absl::Status ExpertCall::Answer(std::span<std::byte> body, Deadline deadline) {
  std::shared_ptr<DataConnection> connection;
  {
    const std::lock_guard lock(mutex_);
    connection = connection_;
  }
  if (connection == nullptr) return FailedPrecondition("nothing was asked");
  absl::Status said;
  absl::Status received = ReceiveAnswerHeader(*connection, sent_, deadline, &said).status();
  if (received.ok() && said.ok()) received = connection->Receive(body, deadline);
  return received.ok() ? said : GiveUp(received);
}

void ExpertCall::Stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  if (connection_ != nullptr) connection_->Cut();
}

}  // namespace ferry
