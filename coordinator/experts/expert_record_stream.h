#pragma once

// The records of a fetch in chunks, one record after the other.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "coordinator/experts/expert_store.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

inline constexpr int64_t kRecordChunkBytes = int64_t{2} << 20;

class ExpertRecordStream {
 public:
  // Reads the store, which must outlive it. `request` has been checked (ExpertExchange::CheckFetch).
  ExpertRecordStream(const ExpertStore* store, ExpertRequest request) : store_(*store), request_(std::move(request)) {}
  // Fills the next chunk; false at the end. InvalidArgument: no such record.
  absl::StatusOr<bool> Next(internal::v1::ExpertRecordChunk* chunk);

 private:
  const ExpertStore& store_;
  const ExpertRequest request_;
  size_t use_ = 0;
  int64_t offset_ = 0;
};

}  // namespace ferry
