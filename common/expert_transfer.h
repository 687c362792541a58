#pragma once

// Sends and receives the messages of common/expert_wire.h on a data connection, for both of its ends. Errors are the connection's
// and those of expert_wire.h; the connection is of no use after them.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/expert_wire.h"
#include "common/status.h"
#include "common/tls/data_connection.h"

namespace ferry {

// Sends `head` and then `body`. Small ones go in one piece, and so in one packet.
absl::Status SendTogether(DataConnection& connection, std::span<const std::byte> head, std::span<const std::byte> body,
                          Deadline deadline);

// The asking end: says the first words, and hears whether the other end says the same.
absl::Status Introduce(DataConnection& connection, const FirstWords& words, Deadline deadline);
// The asking end: the header of the answer to `sent`. Its body follows, unless the other end answered with an error, which is
// then in `said`. `waited`: nothing of it had come when this was called.
absl::StatusOr<AnswerHeader> ReceiveAnswerHeader(DataConnection& connection, const RequestHeader& sent, Deadline deadline,
                                                 absl::Status* said, bool* waited = nullptr);

// The answering end: the next request, whole.
struct ReceivedRequest {
  RequestHeader header;
  ExpertRequest request;    // without an incarnation
  std::vector<float> rows;  // [RowsBehind(header), n_embd]
};
// `number` and `kinds` as of ParseRequestHeader. The request begins before `begin`; its rest comes within `rest`.
absl::StatusOr<ReceivedRequest> ReceiveRequest(DataConnection& connection, const MailboxShape& shape, uint64_t number,
                                               uint32_t kinds, Deadline begin, absl::Duration rest);
// The answering end: sends `body` if `status` is OK, otherwise the error. `seconds`: that the computation took.
absl::Status SendAnswer(DataConnection& connection, const RequestHeader& header, const absl::Status& status,
                        std::span<const std::byte> body, double seconds, Deadline deadline);

}  // namespace ferry
