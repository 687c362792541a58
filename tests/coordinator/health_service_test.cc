#include "coordinator/health_service.h"

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthServiceTest : public ::testing::Test {
 protected:
  HealthServiceTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = Health::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  }
  static HealthCheckRequest Of(const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    return request;
  }

  const std::unique_ptr<MessageReads> reads_ = MessageReads::Create(Clock::Real(), {}).value();
  HealthService service_{reads_.get(), {"a.Service"}};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Health::Stub> stub_;
};

TEST_F(HealthServiceTest, AnswersForTheServerAndItsServicesAlone) {
  service_.SetServing(true);
  for (const char* const name : {"", "a.Service"}) {
    grpc::ClientContext context;
    HealthCheckResponse response;
    ASSERT_TRUE(stub_->Check(&context, Of(name), &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  grpc::ClientContext context;
  HealthCheckResponse response;
  EXPECT_EQ(stub_->Check(&context, Of("another.Service"), &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthServiceTest, WatchersAreToldOfEveryChange) {
  grpc::ClientContext context, of_unknown;
  const auto watch = stub_->Watch(&context, Of("a.Service"));
  HealthCheckResponse response;
  for (const bool serving : {false, true, false}) {
    service_.SetServing(serving);
    ASSERT_TRUE(watch->Read(&response));
    EXPECT_EQ(response.status(), serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  }
  context.TryCancel();
  EXPECT_FALSE(watch->Read(&response));
  watch->Finish();
  const auto unknown = stub_->Watch(&of_unknown, Of("another.Service"));
  ASSERT_TRUE(unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  of_unknown.TryCancel();
  unknown->Finish();
}

}  // namespace
}  // namespace ferry
