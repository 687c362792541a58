#pragma once

// What expert hosts call on the coordinator (cluster.proto): offers, and the records of a host without a model file. Translates
// and checks their messages.

#include <string>

#include "coordinator/experts/expert_hosts.h"
#include "coordinator/experts/expert_messages.h"
#include "coordinator/experts/expert_record_stream.h"
#include "coordinator/experts/expert_store.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

class ExpertHostCalls {
 public:
  // All borrowed. `model_header`: what a host reads the model from (common/model/model_header.h).
  ExpertHostCalls(const ExpertStore* store, ExpertHosts* hosts, uint64_t fingerprint, std::string model_header)
      : store_(*store), hosts_(*hosts), fingerprint_(fingerprint), model_header_(std::move(model_header)) {}

  // Errors of ExpertHosts::Offer; InvalidArgument names the field. Thread-safe.
  absl::Status Offer(const internal::v1::OfferExpertsRequest& request, internal::v1::OfferExpertsResponse* response);
  // FailedPrecondition: another model. InvalidArgument names the field. Thread-safe.
  absl::StatusOr<ExpertRecordStream> Records(const internal::v1::StreamExpertRecordsRequest& request) const;

 private:
  const ExpertStore& store_;
  ExpertHosts& hosts_;
  const uint64_t fingerprint_;
  const std::string model_header_;
};

}  // namespace ferry
