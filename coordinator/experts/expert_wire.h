#pragma once

// The messages between a coordinator and an expert host on their data connection (common/tls/data_connection.h): one request at a
// time and its answer. Sizes are agreed in the first message, and nothing beyond them is read. A request has a number, one more
// than the one before; an answer repeats its request's number, step, layer and entries.
//
//   first, both ways  FirstWords
//   request           RequestHeader, uses (expert, tokens) u32, entry rows u32, rows F32 [num_rows, n_embd]
//   answer            AnswerHeader, then contributions F32 [num_entries, n_embd], or the text of an error
//
// Everything is little-endian. A magic number and a version come first, so that another program or byte order is told by name.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"

namespace ferry {

static_assert(std::endian::native == std::endian::little, "numbers cross the wire little-endian");

// Who speaks, about what, in which sizes. Both ends have to say the same.
struct FirstWords {
  uint64_t incarnation = 0;  // of the expert host's process
  uint64_t fingerprint = 0;  // of the model
  int64_t num_layers = 0;
  MailboxShape shape;  // of one request
  bool operator==(const FirstWords&) const = default;
};
inline constexpr size_t kFirstWordsBytes = 64;
std::array<std::byte, kFirstWordsBytes> Encode(const FirstWords& words);
// Whether the other end said the same as this one. InvalidArgument: it is no Ferry of this version and byte order.
// FailedPrecondition: another incarnation, model or size, which the message names.
absl::Status CheckFirstWords(std::span<const std::byte> said, const FirstWords& own);

enum class WireKind : uint32_t {
  kCompute = 1,
  kProbe = 2,  // has rows and no uses; as many rows as it has entries come back: measures the connection
};

struct RequestHeader {
  WireKind kind = WireKind::kCompute;
  uint64_t number = 0;
  uint64_t step = 0;
  int32_t layer = 0;
  int32_t num_rows = 0, num_uses = 0, num_entries = 0;
  bool operator==(const RequestHeader&) const = default;
};
inline constexpr size_t kHeaderBytes = 64;
std::array<std::byte, kHeaderBytes> Encode(const RequestHeader& header);
// InvalidArgument names the field: no request, another number than `number`, or a count beyond `shape`.
absl::StatusOr<RequestHeader> ParseRequestHeader(std::span<const std::byte> bytes, const MailboxShape& shape, uint64_t number);
// The words behind the header: two a use, one an entry.
inline size_t IdWords(const RequestHeader& header) {
  return 2 * static_cast<size_t>(header.num_uses) + static_cast<size_t>(header.num_entries);
}
std::vector<uint32_t> EncodeIds(const ExpertRequest& request);
// `words` has IdWords(header). The result passes CheckExpertRequest only if the sender's ids are good.
ExpertRequest RequestOf(const RequestHeader& header, std::span<const uint32_t> words);

struct AnswerHeader {
  uint64_t number = 0;
  uint64_t step = 0;
  int32_t layer = 0;
  int32_t num_entries = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
  int32_t text_bytes = 0;  // of an error's message
  double seconds = 0;      // that the computation took
};
inline constexpr int32_t kMaxAnswerText = 1024;
std::array<std::byte, kHeaderBytes> Encode(const AnswerHeader& header);
// InvalidArgument names the field: no answer, an answer to another request, or one of another size.
absl::StatusOr<AnswerHeader> ParseAnswerHeader(std::span<const std::byte> bytes, const RequestHeader& request);

}  // namespace ferry
