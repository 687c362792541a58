#include "coordinator/cluster/enrollment_service.h"

#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "common/tls/cluster_ca.h"
#include "coordinator/raw_message.h"

namespace ferry {
namespace {

constexpr size_t kMaxRequestBytes = 16 << 10;
constexpr WireBounds kEnrollmentBounds = {.max_fields = 16, .max_packed_numbers = 0};

absl::Status Issue(const std::string& folder, const std::string& request_pem, grpc::ByteBuffer* response) {
  if (request_pem.size() > kMaxRequestBytes) {
    return InvalidArgument("request_pem has %d bytes, want at most %d", request_pem.size(), kMaxRequestBytes);
  }
  internal::v1::EnrollResponse answer;
  ASSIGN_OR_RETURN(*answer.mutable_certificate_pem(), IssueNodeCertificate(folder, request_pem, NodeRole::kWorker));
  return Serialize(answer, response);
}

}  // namespace

grpc::ServerUnaryReactor* EnrollmentService::Enroll(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                    grpc::ByteBuffer* response) {
  internal::v1::EnrollRequest request;
  absl::Status status = ParseBounded(*message, kEnrollmentBounds, &request);
  if (status.ok()) status = RedeemJoinToken(folder_, request.token_id(), request.token_secret());
  if (status.ok()) status = Issue(folder_, request.request_pem(), response);
  spdlog::log(status.ok() ? spdlog::level::info : spdlog::level::warn, "a host at {} asked to join: {}", context->peer(),
              status.ok() ? "it got a certificate" : std::string(status.message()));
  return Finish(context, status);
}

grpc::ServerUnaryReactor* EnrollmentService::Renew(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                   grpc::ByteBuffer* response) {
  if (CallerOf(*context) != NodeCaller::kWorker) {
    return Finish(context, absl::PermissionDeniedError("a worker with a certificate may ask for the next one"));
  }
  internal::v1::RenewRequest request;
  const absl::Status parsed = ParseBounded(*message, kEnrollmentBounds, &request);
  return Finish(context, parsed.ok() ? Issue(folder_, request.request_pem(), response) : parsed);
}

}  // namespace ferry
