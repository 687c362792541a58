#pragma once

// What a server shows its clients: a certificate and its key.

#include <string>

#include "common/status.h"

namespace ferry {

// InvalidArgument: `certificate_pem` has no certificate, `key_pem` has no private key without a password, or the key is of
// another certificate.
absl::Status CheckCertificatePair(const std::string& certificate_pem, const std::string& key_pem);

}  // namespace ferry
