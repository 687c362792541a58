#pragma once

// Fetches records from the coordinator, for a host without a model file. Each record is checked, and after a break the fetch goes
// on with the first that is missing.

#include <cstdint>
#include <functional>
#include <span>

#include "absl/time/time.h"
#include "coordinator/experts/expert_store.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class RecordFetcher {
 public:
  // `cluster` outlives this. Gives up after `patience` without a record. `cancelled` is asked between records.
  RecordFetcher(internal::v1::Cluster::StubInterface* cluster, uint64_t fingerprint, absl::Duration patience,
                std::function<bool()> cancelled)
      : cluster_(*cluster), fingerprint_(fingerprint), patience_(patience), cancelled_(std::move(cancelled)) {}

  // Fills the records of `layer`. Errors of the coordinator that no further try mends; Unavailable, DataLoss: the last one before
  // the patience was over; Cancelled.
  absl::Status Fetch(int64_t layer, std::span<const ExpertStore::RecordToFill> records);

 private:
  // Fills records from the front; returns how many, and why no more came.
  absl::Status FetchSome(int64_t layer, std::span<const ExpertStore::RecordToFill> records, size_t* filled);

  internal::v1::Cluster::StubInterface& cluster_;
  const uint64_t fingerprint_;
  const absl::Duration patience_;
  const std::function<bool()> cancelled_;
};

}  // namespace ferry
