#pragma once

// Hidden states on a data connection (common/tls/data_connection.h) between two workers: one connection an epoch, made by the
// worker that sends. Nothing beyond the sizes that both have agreed on is read.
//
//   first        ActivationWords: whom the sender means, and the key that the receiver gave it over gRPC
//   each message ActivationHeader, then rows F32 [num_rows, n_embd], or the text of a failure, or nothing
//   back         u64: how many messages of a measurement the receiver has taken
//
// Everything is little-endian.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/status.h"

namespace ferry {

static_assert(std::endian::native == std::endian::little, "numbers cross the wire little-endian");

struct ActivationWords {
  static constexpr size_t kKeyBytes = 32;
  uint64_t incarnation = 0;  // of the receiver
  uint64_t epoch = 0;
  int64_t n_embd = 0;
  std::string key;  // kKeyBytes of them
};
inline constexpr size_t kActivationWordsBytes = 64;
std::array<std::byte, kActivationWordsBytes> Encode(const ActivationWords& words);
// Whether the sender means this receiver and has its key. InvalidArgument: it is no Ferry of this version and byte order, or its
// rows have another length. Aborted: another incarnation or epoch. PermissionDenied: another key.
absl::Status CheckActivationWords(std::span<const std::byte> said, const ActivationWords& own);

enum class ActivationKind : uint32_t { kRows = 1, kFailure = 2 };

struct ActivationHeader {
  ActivationKind kind = ActivationKind::kRows;
  uint64_t number = 0;  // of the message: one more than of the one before, from 1 on
  uint64_t epoch = 0;
  uint64_t step = 0;
  int64_t first_row = 0, num_rows = 0;  // of rows
  int64_t text_bytes = 0;               // of a failure
};
inline constexpr size_t kActivationHeaderBytes = 64;
inline constexpr int64_t kMaxFailureText = 1024;
std::array<std::byte, kActivationHeaderBytes> Encode(const ActivationHeader& header);

// What a step's rows may follow, in every link that takes them from another process. Step 0 has the rows of a measurement before
// the first step: each of its messages begins at row 0 again.
class RowOrder {
 public:
  explicit RowOrder(int64_t max_rows) : max_rows_(max_rows) {}

  // InvalidArgument names the field: an earlier step, rows that do not continue the last ones, or too many.
  absl::Status CheckRows(uint64_t step, int64_t first_row, int64_t num_rows) const;
  // InvalidArgument: an earlier step, or one that has failed already.
  absl::Status CheckFailure(uint64_t step) const;
  // They passed the check.
  void TakeRows(uint64_t step, int64_t end_row);
  void TakeFailure(uint64_t step);

 private:
  int64_t max_rows_;
  uint64_t last_step_ = 0;
  bool last_failed_ = false;
  int64_t end_row_ = 0;  // where the rows of last_step_ end so far
};

// The headers of one connection in one epoch.
class ActivationHeaders {
 public:
  // Rows have n_embd floats, a step max_rows rows, a message at most max_message_rows of them.
  ActivationHeaders(uint64_t epoch, int64_t max_rows, int64_t max_message_rows)
      : epoch_(epoch), max_message_rows_(max_message_rows), order_(max_rows) {}

  // The next header. InvalidArgument names the field that is wrong: no header, another number or epoch, what RowOrder refuses,
  // more rows than a message has, or a text that is too long.
  absl::StatusOr<ActivationHeader> Parse(std::span<const std::byte> bytes);

 private:
  const uint64_t epoch_;
  const int64_t max_message_rows_;
  uint64_t last_number_ = 0;
  RowOrder order_;
};

}  // namespace ferry
