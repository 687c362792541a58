#pragma once

// Renews a host's certificate before it ends. The key stays, so that the certificate's file changes alone.

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "common/repeating_thread.h"
#include "common/status.h"

namespace ferry {

class CertificateKeeper {
 public:
  // A certificate, PEM, for a request, PEM. Called from the keeper's thread; may take some seconds.
  using Renew = std::function<absl::StatusOr<std::string>(const std::string& request_pem)>;

  // Looks at the certificate in `folder` now and every hour; what fails is logged and tried again an hour later.
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<CertificateKeeper>> Start(std::string folder, Renew renew);

 private:
  CertificateKeeper(std::string folder, Renew renew) : folder_(std::move(folder)), renew_(std::move(renew)) {}
  absl::Status RenewIfDue();

  const std::string folder_;
  const Renew renew_;
  std::unique_ptr<RepeatingThread> thread_;
};

}  // namespace ferry
