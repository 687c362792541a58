#pragma once

// Puts the record of one expert together from the chunks of a FetchExperts stream, and trusts none of them: every field is
// checked before a byte is written, and the record counts only when its checksum is right.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "worker/expert_link.h"

namespace ferry {

class RecordAssembler {
 public:
  // The record of `id`, asked for in `step`, into `buffer`, which is exactly its size.
  RecordAssembler(uint64_t step, ExpertId id, std::span<std::byte> buffer) : step_(step), id_(id), buffer_(buffer) {}

  // The next chunk. InvalidArgument names the field: another step, layer or expert, a record of another size, a gap, too much.
  // DataLoss: the checksum of the whole record, which its last chunk carries, is wrong.
  absl::Status Add(const internal::v1::ExpertRecordChunk& chunk);
  // The stream has ended. DataLoss: before the record was whole.
  absl::Status Finish() const;

 private:
  const uint64_t step_;
  const ExpertId id_;
  const std::span<std::byte> buffer_;
  size_t received_ = 0;
};

}  // namespace ferry
