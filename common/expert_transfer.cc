#include "common/expert_transfer.h"

#include <array>
#include <string>

namespace ferry {
namespace {

// Up to here a copy costs less than another packet.
constexpr size_t kOnePieceBytes = 64 << 10;

}  // namespace

absl::Status SendTogether(DataConnection& connection, std::span<const std::byte> head, std::span<const std::byte> body,
                          Deadline deadline) {
  if (body.size() > kOnePieceBytes) {
    RETURN_IF_ERROR(connection.Send(head, deadline));
    return connection.Send(body, deadline);
  }
  std::vector<std::byte> frame(head.begin(), head.end());
  frame.insert(frame.end(), body.begin(), body.end());
  return connection.Send(frame, deadline);
}

absl::Status Introduce(DataConnection& connection, const FirstWords& words, Deadline deadline) {
  RETURN_IF_ERROR(connection.Send(Encode(words), deadline));
  std::array<std::byte, kFirstWordsBytes> said;
  RETURN_IF_ERROR(connection.Receive(said, deadline));
  return CheckFirstWords(said, words);
}

absl::StatusOr<AnswerHeader> ReceiveAnswerHeader(DataConnection& connection, const RequestHeader& sent, Deadline deadline,
                                                 absl::Status* said, bool* waited) {
  std::array<std::byte, kHeaderBytes> bytes;
  ASSIGN_OR_RETURN(const size_t came, connection.ReceiveSome(bytes, Deadline::In(absl::ZeroDuration())));
  if (waited != nullptr) *waited = came == 0;
  RETURN_IF_ERROR(connection.Receive(std::span(bytes).subspan(came), deadline));
  ASSIGN_OR_RETURN(const AnswerHeader answer, ParseAnswerHeader(bytes, sent));
  if (answer.code == absl::StatusCode::kOk) return answer;
  std::string text(answer.text_bytes, '\0');
  RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(text)), deadline));
  *said = absl::Status(answer.code, text);
  return answer;
}

absl::StatusOr<ReceivedRequest> ReceiveRequest(DataConnection& connection, const MailboxShape& shape, uint64_t number,
                                               uint32_t kinds, Deadline begin, absl::Duration rest) {
  std::array<std::byte, kHeaderBytes> bytes;
  RETURN_IF_ERROR(connection.Receive(bytes, begin));
  const Deadline deadline = Deadline::In(rest);
  ReceivedRequest received;
  ASSIGN_OR_RETURN(received.header, ParseRequestHeader(bytes, shape, number, kinds));
  std::vector<uint32_t> ids(IdWords(received.header));
  if (!ids.empty()) RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(ids)), deadline));
  received.request = RequestOf(received.header, ids);
  received.rows.resize(static_cast<size_t>(RowsBehind(received.header) * shape.n_embd));
  if (!received.rows.empty()) RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(received.rows)), deadline));
  return received;
}

absl::Status SendAnswer(DataConnection& connection, const RequestHeader& header, const absl::Status& status,
                        std::span<const std::byte> body, double seconds, Deadline deadline) {
  AnswerHeader answer = {
      .number = header.number, .step = header.step, .layer = header.layer, .num_entries = header.num_entries, .seconds = seconds};
  if (status.ok()) return SendTogether(connection, Encode(answer), body, deadline);
  const std::string text = std::string(status.message()).substr(0, kMaxAnswerText);
  answer.code = status.code();
  answer.num_entries = 0;
  answer.text_bytes = static_cast<int32_t>(text.size());
  return SendTogether(connection, Encode(answer), std::as_bytes(std::span(text)), deadline);
}

}  // namespace ferry
