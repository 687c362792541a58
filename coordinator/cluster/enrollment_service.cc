#include "coordinator/cluster/enrollment_service.h"

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "common/tls/cluster_ca.h"

namespace ferry {
namespace {

constexpr size_t kMaxRequestBytes = 16 << 10;

absl::Status Issue(const std::string& folder, const std::string& request_pem, internal::v1::EnrollResponse* response) {
  if (request_pem.size() > kMaxRequestBytes) {
    return InvalidArgument("request_pem has %d bytes, want at most %d", request_pem.size(), kMaxRequestBytes);
  }
  ASSIGN_OR_RETURN(*response->mutable_certificate_pem(), IssueNodeCertificate(folder, request_pem, NodeRole::kWorker));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* EnrollmentService::Enroll(grpc::CallbackServerContext* context,
                                                    const internal::v1::EnrollRequest* request,
                                                    internal::v1::EnrollResponse* response) {
  absl::Status status = RedeemJoinToken(folder_, request->token_id(), request->token_secret());
  if (status.ok()) status = Issue(folder_, request->request_pem(), response);
  spdlog::log(status.ok() ? spdlog::level::info : spdlog::level::warn, "a host at {} asked to join: {}", context->peer(),
              status.ok() ? "it got a certificate" : std::string(status.message()));
  return Finish(context, status);
}

grpc::ServerUnaryReactor* EnrollmentService::Renew(grpc::CallbackServerContext* context,
                                                   const internal::v1::RenewRequest* request,
                                                   internal::v1::EnrollResponse* response) {
  if (CallerOf(*context) != NodeCaller::kWorker) {
    return Finish(context, absl::PermissionDeniedError("a worker with a certificate may ask for the next one"));
  }
  return Finish(context, Issue(folder_, request->request_pem(), response));
}

}  // namespace ferry
