#pragma once

// Requests for experts on a data connection (common/tls/data_connection.h), one at a time, and their answers: a coordinator asks
// an expert host, and a worker that does not share the coordinator's memory asks the coordinator. Sizes are agreed in the first
// message, and nothing beyond them is read. A request has a number, one more than the one before; an answer repeats its request's
// number, step and layer.
//
//   first, both ways  FirstWords
//   request           RequestHeader, then what EncodeIds gives, then rows F32 [num_rows, n_embd] if it computes or probes
//   answer            AnswerHeader, then the text of an error, or by the request's kind:
//     kCompute, kProbe  contributions F32 [num_entries, n_embd]
//     kPlan             an ExpertPlace u8 for each use
//     kRecord           the record's bytes; the connection has its own checks (TLS), so there is no sum
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
  uint64_t incarnation = 0;  // of the expert host's process, or of the worker's
  uint32_t worker = 0;       // the worker's place; 0 between a coordinator and an expert host
  uint64_t fingerprint = 0;  // of the model
  int64_t num_layers = 0;
  MailboxShape shape;  // of one request
  bool operator==(const FirstWords&) const = default;
};
inline constexpr size_t kFirstWordsBytes = 64;
std::array<std::byte, kFirstWordsBytes> Encode(const FirstWords& words);
// Of one exchange with an expert host: as many rows as a worker's mailbox holds.
inline constexpr int64_t kMaxExchangeRows = 1024;
// The sizes of a data connection, given those of shared memory: rows and contributions have at most 32 MiB each.
MailboxShape ShapeOfDataConnection(const MailboxShape& whole);
// Whether the other end said the same as this one. InvalidArgument: it is no Ferry of this version and byte order.
// FailedPrecondition: another incarnation, model or size, which the message names.
absl::Status CheckFirstWords(std::span<const std::byte> said, const FirstWords& own);
// Who speaks: the words of any incarnation and worker, checked in everything else. Errors of CheckFirstWords.
absl::StatusOr<FirstWords> ParseFirstWords(std::span<const std::byte> said, const FirstWords& own);

enum class WireKind : uint32_t {
  kCompute = 1,
  kProbe = 2,   // has rows and no uses; as many rows as it has entries come back: measures the connection
  kPlan = 3,    // where to compute the uses, which num_rows rows activate; carries no rows
  kRecord = 4,  // the record of its one use
};
// The kinds that an end answers.
inline constexpr uint32_t kHostKinds = 1u << 1 | 1u << 2, kCoordinatorKinds = 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4;

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
// InvalidArgument names the field: no request, a kind that is none of `kinds` (bits), another number than `number`, or a count
// beyond `shape` or beyond what the kind has. A plan's num_rows may be larger than the shape's, since it carries none.
absl::StatusOr<RequestHeader> ParseRequestHeader(std::span<const std::byte> bytes, const MailboxShape& shape, uint64_t number,
                                                 uint32_t kinds);
// The u32 words behind the header: expert, tokens and resident of each use, then the row of each entry of a computation.
inline size_t IdWords(const RequestHeader& header) {
  return header.kind == WireKind::kProbe ? 0 : 3 * static_cast<size_t>(header.num_uses) + static_cast<size_t>(header.num_entries);
}
std::vector<uint32_t> EncodeIds(const ExpertRequest& request);
// `words` has IdWords(header). The result passes CheckExpertRequest only if the sender's ids are good.
ExpertRequest RequestOf(const RequestHeader& header, std::span<const uint32_t> words);
// The rows F32 [n, n_embd] behind the ids.
inline int64_t RowsBehind(const RequestHeader& header) {
  return header.kind == WireKind::kCompute || header.kind == WireKind::kProbe ? header.num_rows : 0;
}

struct AnswerHeader {
  uint64_t number = 0;
  uint64_t step = 0;
  int32_t layer = 0;
  int32_t num_entries = 0;  // as the request has; 0 with an error
  absl::StatusCode code = absl::StatusCode::kOk;
  int32_t text_bytes = 0;  // of an error's message
  double seconds = 0;      // that the computation took
};
inline constexpr int32_t kMaxAnswerText = 1024;
std::array<std::byte, kHeaderBytes> Encode(const AnswerHeader& header);
// InvalidArgument names the field: no answer, an answer to another request, or one of another size.
absl::StatusOr<AnswerHeader> ParseAnswerHeader(std::span<const std::byte> bytes, const RequestHeader& request);

}  // namespace ferry
