#include "worker/activation_wire.h"

#include <openssl/crypto.h>

#include <cstring>

namespace ferry {
namespace {

constexpr uint32_t kWordsMagic = 0x46485331;   // "1SHF": hidden states of Ferry
constexpr uint32_t kHeaderMagic = 0x46485332;  // "2SHF"
constexpr uint32_t kVersion = 1;

struct WordsOnWire {
  uint32_t magic, version;
  uint64_t incarnation, epoch;
  int64_t n_embd;
  char key[ActivationWords::kKeyBytes];
};
static_assert(sizeof(WordsOnWire) == kActivationWordsBytes);

struct HeaderOnWire {
  uint32_t magic, kind;
  uint64_t number, epoch, step;
  int64_t first_row, num_rows, text_bytes;
  uint64_t zero;
};
static_assert(sizeof(HeaderOnWire) == kActivationHeaderBytes);

template <typename Wire, size_t kBytes>
std::array<std::byte, kBytes> Bytes(const Wire& wire) {
  std::array<std::byte, kBytes> bytes;
  std::memcpy(bytes.data(), &wire, kBytes);
  return bytes;
}

template <typename Wire>
Wire Read(std::span<const std::byte> bytes) {
  Wire wire;
  std::memcpy(&wire, bytes.data(), sizeof(wire));
  return wire;
}

}  // namespace

std::array<std::byte, kActivationWordsBytes> Encode(const ActivationWords& words) {
  WordsOnWire wire = {.magic = kWordsMagic,
                      .version = kVersion,
                      .incarnation = words.incarnation,
                      .epoch = words.epoch,
                      .n_embd = words.n_embd,
                      .key = {}};
  std::memcpy(wire.key, words.key.data(), std::min(words.key.size(), sizeof(wire.key)));
  return Bytes<WordsOnWire, kActivationWordsBytes>(wire);
}

absl::Status CheckActivationWords(std::span<const std::byte> said, const ActivationWords& own) {
  if (said.size() != kActivationWordsBytes) return InvalidArgument("%d bytes, want %d", said.size(), kActivationWordsBytes);
  const WordsOnWire wire = Read<WordsOnWire>(said);
  if (wire.magic != kWordsMagic) return InvalidArgument("the first word is %#x, want %#x", wire.magic, kWordsMagic);
  if (wire.version != kVersion) return InvalidArgument("version is %d, want %d", wire.version, kVersion);
  if (own.key.size() != sizeof(wire.key) || CRYPTO_memcmp(wire.key, own.key.data(), sizeof(wire.key)) != 0) {
    return absl::PermissionDeniedError("the key is not the one that this worker gave");
  }
  if (wire.incarnation != own.incarnation) return Aborted("incarnation is %d, want %d", wire.incarnation, own.incarnation);
  if (wire.epoch != own.epoch) return Aborted("epoch is %d, want %d", wire.epoch, own.epoch);
  if (wire.n_embd != own.n_embd) return InvalidArgument("n_embd is %d, want %d", wire.n_embd, own.n_embd);
  return absl::OkStatus();
}

std::array<std::byte, kActivationHeaderBytes> Encode(const ActivationHeader& header) {
  return Bytes<HeaderOnWire, kActivationHeaderBytes>({.magic = kHeaderMagic,
                                                      .kind = static_cast<uint32_t>(header.kind),
                                                      .number = header.number,
                                                      .epoch = header.epoch,
                                                      .step = header.step,
                                                      .first_row = header.first_row,
                                                      .num_rows = header.num_rows,
                                                      .text_bytes = header.text_bytes,
                                                      .zero = 0});
}

absl::Status RowOrder::CheckRows(uint64_t step, int64_t first_row, int64_t num_rows) const {
  if (step < last_step_) return InvalidArgument("step is %d after %d", step, last_step_);
  const bool again = step == 0 && first_row == 0;
  const int64_t want_first = step == last_step_ ? end_row_ : 0;
  if (first_row != want_first && !again) return InvalidArgument("first_row is %d, want %d", first_row, want_first);
  if (num_rows < 1 || num_rows > max_rows_ - first_row) {
    return InvalidArgument("num_rows is %d, want 1 to %d", num_rows, max_rows_ - first_row);
  }
  return absl::OkStatus();
}

absl::Status RowOrder::CheckFailure(uint64_t step) const {
  if (step < last_step_ || step == 0) return InvalidArgument("step is %d after %d", step, last_step_);
  if (step == last_step_ && last_failed_) return InvalidArgument("step %d failed already", step);
  return absl::OkStatus();
}

void RowOrder::TakeRows(uint64_t step, int64_t end_row) {
  last_step_ = step;
  last_failed_ = false;
  end_row_ = end_row;
}

void RowOrder::TakeFailure(uint64_t step) {
  last_step_ = step;
  last_failed_ = true;
  end_row_ = max_rows_;  // nothing more of this step
}

absl::StatusOr<ActivationHeader> ActivationHeaders::Parse(std::span<const std::byte> bytes) {
  if (bytes.size() != kActivationHeaderBytes) {
    return InvalidArgument("a header has %d bytes, want %d", bytes.size(), kActivationHeaderBytes);
  }
  const HeaderOnWire wire = Read<HeaderOnWire>(bytes);
  if (wire.magic != kHeaderMagic) return InvalidArgument("a message begins with %#x, want %#x", wire.magic, kHeaderMagic);
  const ActivationHeader header = {.kind = static_cast<ActivationKind>(wire.kind),
                                   .number = wire.number,
                                   .epoch = wire.epoch,
                                   .step = wire.step,
                                   .first_row = wire.first_row,
                                   .num_rows = wire.num_rows,
                                   .text_bytes = wire.text_bytes};
  if (header.number != last_number_ + 1) return InvalidArgument("number is %d, want %d", header.number, last_number_ + 1);
  if (header.epoch != epoch_) return InvalidArgument("epoch is %d, want %d", header.epoch, epoch_);
  if (wire.zero != 0) return InvalidArgument("the last word is %d, want 0", wire.zero);
  switch (header.kind) {
    case ActivationKind::kRows:
      if (header.text_bytes != 0) return InvalidArgument("text_bytes is %d, want 0 beside rows", header.text_bytes);
      if (header.first_row < 0) return InvalidArgument("first_row is %d", header.first_row);
      RETURN_IF_ERROR(order_.CheckRows(header.step, header.first_row, header.num_rows));
      if (header.num_rows > max_message_rows_) {
        return InvalidArgument("num_rows is %d, want at most %d in a message", header.num_rows, max_message_rows_);
      }
      order_.TakeRows(header.step, header.first_row + header.num_rows);
      break;
    case ActivationKind::kFailure:
      if (header.first_row != 0 || header.num_rows != 0) return InvalidArgument("a failure has %d rows", header.num_rows);
      if (header.text_bytes < 1 || header.text_bytes > kMaxFailureText) {
        return InvalidArgument("text_bytes is %d, want 1 to %d", header.text_bytes, kMaxFailureText);
      }
      RETURN_IF_ERROR(order_.CheckFailure(header.step));
      order_.TakeFailure(header.step);
      break;
    default:
      return InvalidArgument("kind is %d", wire.kind);
  }
  last_number_ = header.number;
  return header;
}

}  // namespace ferry
