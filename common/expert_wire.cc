#include "common/expert_wire.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace ferry {
namespace {

constexpr uint32_t kVersion = 2;
constexpr int64_t kMaxBodyBytes = int64_t{32} << 20;
constexpr uint32_t kFirstMagic = 0x31584546, kRequestMagic = 0x52584546, kAnswerMagic = 0x41584546;  // "FEX1", "FEXR", "FEXA"

struct WireFirstWords {
  uint32_t magic, version;
  uint64_t incarnation, fingerprint;
  uint32_t num_layers, n_embd, max_rows, max_entries, max_experts, worker;
  uint32_t unused[4];
};
static_assert(sizeof(WireFirstWords) == kFirstWordsBytes);

struct WireRequest {
  uint32_t magic, kind;
  uint64_t number, step;
  uint32_t layer, num_rows, num_uses, num_entries;
  uint32_t unused[6];
};
static_assert(sizeof(WireRequest) == kHeaderBytes);

struct WireAnswer {
  uint32_t magic, code;
  uint64_t number, step;
  uint32_t layer, num_entries, text_bytes, unused_word;
  double seconds;
  uint32_t unused[4];
};
static_assert(sizeof(WireAnswer) == kHeaderBytes);

template <typename Wire>
std::array<std::byte, sizeof(Wire)> BytesOf(const Wire& wire) {
  std::array<std::byte, sizeof(Wire)> bytes;
  std::memcpy(bytes.data(), &wire, sizeof(wire));
  return bytes;
}
template <typename Wire>
absl::StatusOr<Wire> Read(std::span<const std::byte> bytes, uint32_t magic, const char* what) {
  Wire wire;
  if (bytes.size() != sizeof(wire)) return InvalidArgument("%s has %d bytes, want %d", what, bytes.size(), sizeof(wire));
  std::memcpy(&wire, bytes.data(), sizeof(wire));
  if (wire.magic != magic) return InvalidArgument("this is no %s: it begins with %08x, want %08x", what, wire.magic, magic);
  return wire;
}

absl::Status CheckCount(const char* field, uint32_t value, int64_t most) {
  if (value <= most) return absl::OkStatus();
  return InvalidArgument("%s is %d, want at most %d", field, value, most);
}

}  // namespace

std::array<std::byte, kFirstWordsBytes> Encode(const FirstWords& words) {
  return BytesOf(WireFirstWords{.magic = kFirstMagic,
                                .version = kVersion,
                                .incarnation = words.incarnation,
                                .fingerprint = words.fingerprint,
                                .num_layers = static_cast<uint32_t>(words.num_layers),
                                .n_embd = static_cast<uint32_t>(words.shape.n_embd),
                                .max_rows = static_cast<uint32_t>(words.shape.max_rows),
                                .max_entries = static_cast<uint32_t>(words.shape.max_entries),
                                .max_experts = static_cast<uint32_t>(words.shape.max_experts),
                                .worker = words.worker,
                                .unused = {}});
}

MailboxShape ShapeOfDataConnection(const MailboxShape& whole) {
  const int64_t most = std::max<int64_t>(1, kMaxBodyBytes / (whole.n_embd * static_cast<int64_t>(sizeof(float))));
  MailboxShape shape = whole;
  shape.max_rows = std::min(whole.max_rows, most);
  shape.max_entries = std::min(whole.max_entries, most);
  return shape;
}

absl::Status CheckFirstWords(std::span<const std::byte> said, const FirstWords& own) {
  ASSIGN_OR_RETURN(const FirstWords other, ParseFirstWords(said, own));
  if (other.incarnation != own.incarnation) {
    return FailedPrecondition("the other end means the process %016x, want %016x", other.incarnation, own.incarnation);
  }
  if (other.worker == own.worker) return absl::OkStatus();
  return FailedPrecondition("the other end means worker %d, want %d", other.worker, own.worker);
}

absl::StatusOr<FirstWords> ParseFirstWords(std::span<const std::byte> said, const FirstWords& own) {
  ASSIGN_OR_RETURN(const WireFirstWords other, Read<WireFirstWords>(said, kFirstMagic, "data connection of Ferry"));
  if (other.version != kVersion) return InvalidArgument("the other end speaks version %d, want %d", other.version, kVersion);
  if (other.fingerprint != own.fingerprint) {
    return FailedPrecondition("the other end has another model: its fingerprint is %016x, want %016x", other.fingerprint,
                              own.fingerprint);
  }
  const auto same = [](const char* field, uint32_t value, int64_t want) {
    if (value == want) return absl::OkStatus();
    return FailedPrecondition("the other end's %s is %d, want %d", field, value, want);
  };
  RETURN_IF_ERROR(same("num_layers", other.num_layers, own.num_layers));
  RETURN_IF_ERROR(same("n_embd", other.n_embd, own.shape.n_embd));
  RETURN_IF_ERROR(same("max_rows", other.max_rows, own.shape.max_rows));
  RETURN_IF_ERROR(same("max_entries", other.max_entries, own.shape.max_entries));
  RETURN_IF_ERROR(same("max_experts", other.max_experts, own.shape.max_experts));
  FirstWords words = own;
  words.incarnation = other.incarnation;
  words.worker = other.worker;
  return words;
}

std::array<std::byte, kHeaderBytes> Encode(const RequestHeader& header) {
  return BytesOf(WireRequest{.magic = kRequestMagic,
                             .kind = static_cast<uint32_t>(header.kind),
                             .number = header.number,
                             .step = header.step,
                             .layer = static_cast<uint32_t>(header.layer),
                             .num_rows = static_cast<uint32_t>(header.num_rows),
                             .num_uses = static_cast<uint32_t>(header.num_uses),
                             .num_entries = static_cast<uint32_t>(header.num_entries),
                             .unused = {}});
}

absl::StatusOr<RequestHeader> ParseRequestHeader(std::span<const std::byte> bytes, const MailboxShape& shape, uint64_t number,
                                                 uint32_t kinds) {
  ASSIGN_OR_RETURN(const WireRequest wire, Read<WireRequest>(bytes, kRequestMagic, "request"));
  if (wire.kind >= 32 || (kinds >> wire.kind & 1) == 0)
    return InvalidArgument("kind is %d, which this end does not answer", wire.kind);
  if (wire.number != number) return InvalidArgument("number is %d, want %d", wire.number, number);
  const WireKind kind{wire.kind};
  const int64_t most_uses = kind == WireKind::kProbe ? 0 : kind == WireKind::kRecord ? 1 : shape.max_experts;
  const bool has_entries = kind == WireKind::kCompute || kind == WireKind::kProbe;
  RETURN_IF_ERROR(CheckCount("layer", wire.layer, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckCount("num_rows", wire.num_rows, has_entries ? shape.max_rows : std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckCount("num_uses", wire.num_uses, most_uses));
  RETURN_IF_ERROR(CheckCount("num_entries", wire.num_entries, has_entries ? shape.max_entries : 0));
  return RequestHeader{.kind = static_cast<WireKind>(wire.kind),
                       .number = wire.number,
                       .step = wire.step,
                       .layer = static_cast<int32_t>(wire.layer),
                       .num_rows = static_cast<int32_t>(wire.num_rows),
                       .num_uses = static_cast<int32_t>(wire.num_uses),
                       .num_entries = static_cast<int32_t>(wire.num_entries)};
}

std::vector<uint32_t> EncodeIds(const ExpertRequest& request) {
  std::vector<uint32_t> words;
  words.reserve(3 * request.uses.size() + request.entry_rows.size());
  for (const ActivatedExpert& use : request.uses) {
    words.push_back(static_cast<uint32_t>(use.expert));
    words.push_back(static_cast<uint32_t>(use.tokens));
    words.push_back(use.resident);
  }
  words.insert(words.end(), request.entry_rows.begin(), request.entry_rows.end());
  return words;
}

ExpertRequest RequestOf(const RequestHeader& header, std::span<const uint32_t> words) {
  ExpertRequest request = {.kind = header.kind == WireKind::kCompute ? ExpertRequestKind::kCompute : ExpertRequestKind::kPlan,
                           .step = header.step,
                           .layer = header.layer,
                           .num_rows = header.num_rows,
                           .uses = {},
                           .entry_rows = {}};
  // A word beyond an int32's range becomes negative, which CheckExpertRequest refuses.
  for (int32_t i = 0; i < header.num_uses; ++i) {
    request.uses.push_back({.expert = static_cast<int32_t>(words[3 * i]),
                            .tokens = static_cast<int32_t>(words[3 * i + 1]),
                            .resident = words[3 * i + 2]});
  }
  for (const uint32_t row : words.subspan(3 * static_cast<size_t>(header.num_uses))) {
    request.entry_rows.push_back(static_cast<int32_t>(row));
  }
  return request;
}

std::array<std::byte, kHeaderBytes> Encode(const AnswerHeader& header) {
  return BytesOf(WireAnswer{.magic = kAnswerMagic,
                            .code = static_cast<uint32_t>(header.code),
                            .number = header.number,
                            .step = header.step,
                            .layer = static_cast<uint32_t>(header.layer),
                            .num_entries = static_cast<uint32_t>(header.num_entries),
                            .text_bytes = static_cast<uint32_t>(header.text_bytes),
                            .unused_word = 0,
                            .seconds = header.seconds,
                            .unused = {}});
}

absl::StatusOr<AnswerHeader> ParseAnswerHeader(std::span<const std::byte> bytes, const RequestHeader& request) {
  ASSIGN_OR_RETURN(const WireAnswer wire, Read<WireAnswer>(bytes, kAnswerMagic, "answer"));
  if (wire.number != request.number) return InvalidArgument("number is %d, want %d", wire.number, request.number);
  if (wire.step != request.step) return InvalidArgument("step is %d, want %d", wire.step, request.step);
  if (static_cast<int64_t>(wire.layer) != request.layer) {
    return InvalidArgument("layer is %d, want %d", wire.layer, request.layer);
  }
  RETURN_IF_ERROR(CheckCount("code", wire.code, static_cast<int64_t>(absl::StatusCode::kUnauthenticated)));
  const bool ok = wire.code == 0;
  const uint32_t want_entries = ok ? static_cast<uint32_t>(request.num_entries) : 0;
  if (wire.num_entries != want_entries) return InvalidArgument("num_entries is %d, want %d", wire.num_entries, want_entries);
  RETURN_IF_ERROR(CheckCount("text_bytes", wire.text_bytes, ok ? 0 : kMaxAnswerText));
  if (!(std::isfinite(wire.seconds) && wire.seconds >= 0)) return InvalidArgument("seconds is %g, want 0 or more", wire.seconds);
  return AnswerHeader{.number = wire.number,
                      .step = wire.step,
                      .layer = static_cast<int32_t>(wire.layer),
                      .num_entries = static_cast<int32_t>(wire.num_entries),
                      .code = static_cast<absl::StatusCode>(wire.code),
                      .text_bytes = static_cast<int32_t>(wire.text_bytes),
                      .seconds = wire.seconds};
}

}  // namespace ferry
