#include "worker/record_assembler.h"

#include <xxhash.h>

#include <cstring>

namespace ferry {

absl::Status RecordAssembler::Add(const internal::v1::ExpertRecordChunk& chunk) {
  if (chunk.step() != step_) return InvalidArgument("step is %d, want %d", chunk.step(), step_);
  if (static_cast<int64_t>(chunk.layer()) != id_.layer) return InvalidArgument("layer is %d, want %d", chunk.layer(), id_.layer);
  if (static_cast<int64_t>(chunk.expert()) != id_.expert) {
    return InvalidArgument("expert is %d, want %d", chunk.expert(), id_.expert);
  }
  if (chunk.record_bytes() != buffer_.size()) {
    return InvalidArgument("record_bytes is %d, want %d", chunk.record_bytes(), buffer_.size());
  }
  if (chunk.offset() != received_) return InvalidArgument("offset is %d, want %d", chunk.offset(), received_);
  if (chunk.data().empty() || chunk.data().size() > buffer_.size() - received_) {
    return InvalidArgument("data has %d bytes, want 1 to %d", chunk.data().size(), buffer_.size() - received_);
  }
  std::memcpy(buffer_.data() + received_, chunk.data().data(), chunk.data().size());
  received_ += chunk.data().size();
  if (received_ < buffer_.size()) return absl::OkStatus();
  const uint64_t checksum = XXH3_64bits(buffer_.data(), buffer_.size());
  if (chunk.xxh3() != checksum) {
    return DataLoss("the record of expert %d of layer %d came damaged: its checksum is %016x, want %016x", id_.expert, id_.layer,
                    checksum, chunk.xxh3());
  }
  return absl::OkStatus();
}

absl::Status RecordAssembler::Finish() const {
  if (received_ == buffer_.size()) return absl::OkStatus();
  return DataLoss("the record of expert %d of layer %d ended after %d of %d bytes", id_.expert, id_.layer, received_,
                  buffer_.size());
}

}  // namespace ferry
