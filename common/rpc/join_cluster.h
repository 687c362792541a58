#pragma once

// A host's way into a cluster: a one-time token is exchanged for a certificate.

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/deadline.h"
#include "common/status.h"

namespace ferry {

// Makes a key here, has the coordinator sign it, and writes the files of `folder` (common/tls/cluster_ca.h). The coordinator is
// known by the CA's fingerprint in the token, the host by the token's secret. InvalidArgument: an address or a token that is
// none; PermissionDenied: the server there belongs to another cluster; Unauthenticated: the token is unknown, was used, or is
// over; Unavailable, DeadlineExceeded: nobody answers.
absl::Status JoinCluster(const std::string& coordinator, const std::string& token, const std::string& folder, Deadline deadline);

// Asks the coordinator, on a channel with this host's certificate, for the next one.
absl::StatusOr<std::string> RenewCertificate(const std::shared_ptr<grpc::Channel>& coordinator, const std::string& request_pem);

}  // namespace ferry
