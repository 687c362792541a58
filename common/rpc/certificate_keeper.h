#pragma once

// Renews a host's certificate before it ends. The key stays, so that the certificate's file changes alone.

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "common/repeating_thread.h"
#include "common/status.h"
#include "common/tls/cluster_ca.h"

namespace ferry {

class CertificateKeeper {
 public:
  // A certificate, PEM, for a request, PEM. Called from the keeper's thread; may take some seconds.
  using Renew = std::function<absl::StatusOr<std::string>(const std::string& request_pem)>;

  struct Options {
    absl::Duration pause = absl::Hours(1);       // between two looks at the certificate
    absl::Duration renew_before = kRenewBefore;  // its end
  };
  // Looks at the certificate in `folder` now, and again after each pause; what fails is logged and tried again at the next look.
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<CertificateKeeper>> Start(std::string folder, Renew renew, const Options& options);
  static absl::StatusOr<std::unique_ptr<CertificateKeeper>> Start(std::string folder, Renew renew) {
    return Start(std::move(folder), std::move(renew), Options());
  }

 private:
  CertificateKeeper(std::string folder, Renew renew, absl::Duration renew_before)
      : folder_(std::move(folder)), renew_(std::move(renew)), renew_before_(renew_before) {}
  absl::Status RenewIfDue();

  const std::string folder_;
  const Renew renew_;
  const absl::Duration renew_before_;
  std::unique_ptr<RepeatingThread> thread_;
};

}  // namespace ferry
