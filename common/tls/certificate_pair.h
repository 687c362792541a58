#pragma once

// What a server shows its clients, a certificate and its key, and the authority by which a client knows it.

#include <optional>
#include <string>

#include "common/status.h"

namespace ferry {

// InvalidArgument: `certificate_pem` has no certificate, `key_pem` has no private key without a password, or the key is of
// another certificate.
absl::Status CheckCertificatePair(const std::string& certificate_pem, const std::string& key_pem);

// Names the file of a certificate authority, in PEM, that a client of Ferry trusts instead of the system's.
inline constexpr char kTlsCaVariable[] = "FERRY_TLS_CA";

// The certificates in the file that FERRY_TLS_CA names; empty if the variable is not set. Errors name the variable:
// InvalidArgument for a file without a certificate, and those of ReadSmallFile.
absl::StatusOr<std::optional<std::string>> CaFromEnvironment();

}  // namespace ferry
