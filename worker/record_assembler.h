#pragma once

// Assembles the record of one expert from the chunks of a FetchExperts stream. It checks every field of a chunk before it writes
// a byte, and accepts the record only with the right checksum.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "worker/expert_link.h"

namespace ferry {

class RecordAssembler {
 public:
  // Assembles the record of `id`, asked for in `step`, in `buffer`, whose size is exactly the record's.
  RecordAssembler(uint64_t step, ExpertId id, std::span<std::byte> buffer) : step_(step), id_(id), buffer_(buffer) {}

  // Adds the next chunk. InvalidArgument names the field: another step, layer or expert, a record of another size, a gap, or
  // bytes beyond the record's end. DataLoss: the record's checksum, which the last chunk carries, is wrong.
  absl::Status Add(const internal::v1::ExpertRecordChunk& chunk);
  // The stream has ended. DataLoss: the record is not complete.
  absl::Status Finish() const;

 private:
  const uint64_t step_;
  const ExpertId id_;
  const std::span<std::byte> buffer_;
  size_t received_ = 0;
};

}  // namespace ferry
