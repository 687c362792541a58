// /metrics for Prometheus.

#include "gateway/errors.h"
#include "gateway/metrics/prometheus_text.h"
#include "gateway/routes/routes.h"

namespace ferry {

void AddMetricsRoutes(const RouteParts& parts, Router& router) {
  router.Add("GET", "/metrics", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const RouteCall call = CallOf(parts, request, exchange);
    parts.models->Get(call.engine, [parts, call, exchange](const absl::StatusOr<Model>& model) {
      const std::string name = model.ok() ? (*model)->info.name() : "";
      call.engine->GetServerInfo([parts, exchange, name](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
        if (absl::IsUnauthenticated(server.status())) {
          return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, server.status()));
        }
        exchange->Respond({.content_type = kPrometheusContentType,
                           .body = PrometheusText(*parts.metrics, name, server.ok() ? &*server : nullptr)});
      });
    });
    return absl::OkStatus();
  });
}

}  // namespace ferry
