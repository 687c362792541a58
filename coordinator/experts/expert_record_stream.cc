#include "coordinator/experts/expert_record_stream.h"

#include <algorithm>
#include <span>

#include "xxhash.h"

namespace ferry {

absl::StatusOr<bool> ExpertRecordStream::Next(internal::v1::ExpertRecordChunk* chunk) {
  if (use_ == request_.uses.size()) return false;
  const int32_t expert = request_.uses[use_].expert;
  ASSIGN_OR_RETURN(const std::span<const std::byte> record, store_.Record(request_.layer, expert));
  const int64_t record_bytes = static_cast<int64_t>(record.size());
  const std::span<const std::byte> part = record.subspan(offset_, std::min(kRecordChunkBytes, record_bytes - offset_));
  chunk->Clear();
  chunk->set_step(request_.step);
  chunk->set_layer(request_.layer);
  chunk->set_expert(expert);
  chunk->set_record_bytes(record_bytes);
  chunk->set_offset(offset_);
  chunk->set_data(part.data(), part.size());
  offset_ += static_cast<int64_t>(part.size());
  if (offset_ == record_bytes) {
    chunk->set_xxh3(XXH3_64bits(record.data(), record.size()));
    ++use_;
    offset_ = 0;
  }
  return true;
}

}  // namespace ferry
