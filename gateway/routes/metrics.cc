// /metrics for Prometheus.

#include "gateway/metrics/prometheus_text.h"
#include "gateway/routes/routes.h"

namespace ferry {

void AddMetricsRoutes(const RouteParts& parts, Router& router) {
  router.Add("GET", "/metrics", [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    parts.models->Get([parts, exchange](const absl::StatusOr<Model>& model) {
      const std::string name = model.ok() ? (*model)->info.name() : "";
      parts.engine->GetServerInfo([parts, exchange, name](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
        exchange->Respond({.content_type = kPrometheusContentType,
                           .body = PrometheusText(*parts.metrics, name, server.ok() ? &*server : nullptr)});
      });
    });
    return absl::OkStatus();
  });
}

}  // namespace ferry
