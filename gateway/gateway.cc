#include "gateway/gateway.h"

#include <utility>

#include "gateway/engine_client.h"
#include "gateway/http/listener.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

class GatewayImpl final : public Gateway {
 public:
  GatewayImpl(std::unique_ptr<EngineClient> engine, const GatewayOptions& options)
      : engine_(std::move(engine)), chats_(&models_, options.chat_template), router_(options.access, options.origins) {
    const RouteParts parts = {.coordinator = engine_.get(), .models = &models_, .chats = &chats_, .metrics = &metrics_};
    AddHealthRoutes(parts, router_);
    AddModelRoutes(parts, router_);
    AddTokenRoutes(parts, router_);
    AddCompletionRoutes(parts, router_);
    AddChatRoutes(parts, router_);
    AddMessagesRoutes(parts, router_);
    AddResponsesRoutes(parts, router_);
    AddMetricsRoutes(parts, router_);
    AddEngineRoutes(parts, router_);
    AddPageRoutes(router_);
  }
  ~GatewayImpl() override {
    if (listener_ != nullptr) listener_->Drain(Deadline::In(absl::ZeroDuration()));
    engine_->Shutdown();  // with the last callback the last exchange is gone
  }

  absl::Status Listen(const GatewayOptions& options) {
    std::unique_ptr<HttpTls> tls;
    if (!options.tls_certificate.empty()) {
      ASSIGN_OR_RETURN(tls, HttpTls::Load(options.tls_certificate, options.tls_key));
    }
    ASSIGN_OR_RETURN(listener_, HttpListener::Start(options.listen, options.limits, &router_, std::move(tls)));
    return absl::OkStatus();
  }

  int port() const override { return listener_->port(); }
  int num_connections() const override { return listener_->num_connections(); }
  void Drain(Deadline deadline) override { listener_->Drain(deadline); }

 private:
  const std::unique_ptr<EngineClient> engine_;
  ModelCache models_;
  ChatModels chats_;
  GatewayMetrics metrics_;
  Router router_;
  std::unique_ptr<HttpListener> listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(const GatewayOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<EngineClient> engine, EngineClient::Create(options.coordinator, options.coordinator_ca));
  auto gateway = std::make_unique<GatewayImpl>(std::move(engine), options);
  RETURN_IF_ERROR(gateway->Listen(options));
  return gateway;
}

}  // namespace ferry
