#pragma once

// The certificates of a cluster whose workers are on several hosts: a certificate authority (CA) of its own, and a certificate
// for each host, which says whether the coordinator or a worker may use it. Keys are of the curve P-256.
//
// A folder (mode 0700) holds one member's files:
//
//   ca.crt    the CA's certificate                          every host
//   ca.key    its key, with which certificates are made     the coordinator's host alone
//   node.crt  this host's certificate, then the CA's        every host
//   node.key  its key                                       every host, made there
//   tokens    one-time tokens that are open, hashed         the coordinator's host alone

#include <string>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

enum class NodeRole { kCoordinator, kWorker };
// "coordinator.ferry.internal", "worker.ferry.internal": the name in a certificate, by which its role is known.
std::string NodeName(NodeRole role);

inline constexpr absl::Duration kCaLifetime = absl::Hours(24 * 3650);
inline constexpr absl::Duration kNodeLifetime = absl::Hours(24 * 90);
// A certificate with less than this left is made anew.
inline constexpr absl::Duration kRenewBefore = absl::Hours(24 * 30);

// $XDG_CONFIG_HOME/ferry/cluster, or ~/.config/ferry/cluster: where the folder is unless it is said.
std::string DefaultClusterFolder();

std::string CaCertificatePath(const std::string& folder);
std::string NodeCertificatePath(const std::string& folder);
std::string NodeKeyPath(const std::string& folder);

// Makes `folder`, a CA and the coordinator's certificate. AlreadyExists: the folder has a CA.
absl::Status MakeClusterCa(const std::string& folder);

// A host's own key, and the request for a certificate that leaves the host.
struct NodeRequest {
  std::string key_pem, request_pem;
};
// `key_pem` not empty: for a key that the host has, whose certificate is made anew.
absl::StatusOr<NodeRequest> MakeNodeRequest(const std::string& key_pem = "");
// Where the CA is: a certificate for `request_pem`, PEM, followed by the CA's. InvalidArgument: no request, of another kind of
// key, or not signed by its own key. FailedPrecondition: `folder` has no CA.
absl::StatusOr<std::string> IssueNodeCertificate(const std::string& folder, const std::string& request_pem, NodeRole role,
                                                 absl::Duration lifetime = kNodeLifetime);
// Writes what a host has got, each file whole or not at all and for its owner alone. Makes the folder.
absl::Status WriteNodeFiles(const std::string& folder, const std::string& ca_pem, const std::string& certificate_pem,
                            const std::string& key_pem);
// When the first certificate of a PEM text ends.
absl::StatusOr<absl::Time> CertificateEnd(const std::string& certificate_pem);
// SHA-256 of a PEM certificate, 64 hexadecimal digits: by it a CA is recognized.
absl::StatusOr<std::string> CertificateFingerprint(const std::string& certificate_pem);

// One-time tokens, with which a host that joins shows that it may. "fj-" ID "-" SECRET "-" FINGERPRINT of the CA, by which the
// host knows the coordinator.
absl::StatusOr<std::string> MakeJoinToken(const std::string& folder, absl::Duration valid_for);
struct JoinToken {
  std::string id, secret, ca_fingerprint;
};
// InvalidArgument: it has another form.
absl::StatusOr<JoinToken> ParseJoinToken(const std::string& token);
// Takes the token out of the folder's list. Unauthenticated: it is not there, was used, or is over.
absl::Status RedeemJoinToken(const std::string& folder, const std::string& id, const std::string& secret);

}  // namespace ferry
