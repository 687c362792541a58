#pragma once

// enrollment.proto over gRPC: hosts get certificates from the CA of this coordinator's folder. Anybody may call: messages come in
// as bytes, which are bounded before they are parsed (coordinator/wire_bounds.h).

#include <string>
#include <utility>

#include "ferry/internal/v1/enrollment.grpc.pb.h"

namespace ferry {

using RawEnrollmentService = internal::v1::Enrollment::WithRawCallbackMethod_Enroll<
    internal::v1::Enrollment::WithRawCallbackMethod_Renew<internal::v1::Enrollment::Service>>;

class EnrollmentService final : public RawEnrollmentService {
 public:
  explicit EnrollmentService(std::string folder) : folder_(std::move(folder)) {}

  grpc::ServerUnaryReactor* Enroll(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Renew(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                  grpc::ByteBuffer* response) override;

 private:
  const std::string folder_;
};

}  // namespace ferry
