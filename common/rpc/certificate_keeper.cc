#include "common/rpc/certificate_keeper.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/escaped.h"
#include "common/log.h"
#include "common/small_file.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<CertificateKeeper>> CertificateKeeper::Start(std::string folder, Renew renew,
                                                                            const Options& options) {
  std::unique_ptr<CertificateKeeper> keeper(new CertificateKeeper(std::move(folder), std::move(renew), options.renew_before));
  ASSIGN_OR_RETURN(keeper->thread_, RepeatingThread::Start(options.pause, [raw = keeper.get()] {
                     if (const absl::Status status = raw->RenewIfDue(); !status.ok()) {
                       spdlog::warn("this host's certificate could not be renewed: {}", Escaped(status.ToString()));
                     }
                   }));
  return keeper;
}

absl::Status CertificateKeeper::RenewIfDue() {
  ASSIGN_OR_RETURN(const std::string certificate, ReadSmallFile(NodeCertificatePath(folder_)));
  ASSIGN_OR_RETURN(const absl::Time end, CertificateEnd(certificate));
  if (end - absl::Now() > renew_before_) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string key, ReadSmallFile(NodeKeyPath(folder_)));
  ASSIGN_OR_RETURN(const std::string ca, ReadSmallFile(CaCertificatePath(folder_)));
  ASSIGN_OR_RETURN(const NodeRequest request, MakeNodeRequest(key));
  ASSIGN_OR_RETURN(const std::string renewed, renew_(request.request_pem));
  ASSIGN_OR_RETURN(const absl::Time new_end, CertificateEnd(renewed));
  RETURN_IF_ERROR(WriteNodeFiles(folder_, ca, renewed, key));
  spdlog::info("this host's certificate was renewed and ends at {}", absl::FormatTime(new_end));
  return absl::OkStatus();
}

}  // namespace ferry
