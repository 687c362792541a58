#pragma once

// enrollment.proto over gRPC: hosts get certificates from the CA of this coordinator's folder.

#include <string>
#include <utility>

#include "ferry/internal/v1/enrollment.grpc.pb.h"

namespace ferry {

class EnrollmentService final : public internal::v1::Enrollment::CallbackService {
 public:
  explicit EnrollmentService(std::string folder) : folder_(std::move(folder)) {}

  grpc::ServerUnaryReactor* Enroll(grpc::CallbackServerContext* context, const internal::v1::EnrollRequest* request,
                                   internal::v1::EnrollResponse* response) override;
  grpc::ServerUnaryReactor* Renew(grpc::CallbackServerContext* context, const internal::v1::RenewRequest* request,
                                  internal::v1::EnrollResponse* response) override;

 private:
  const std::string folder_;
};

}  // namespace ferry
