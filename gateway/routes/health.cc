// /health: 200 while requests can be served, 503 with the reason otherwise.

#include "gateway/errors.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

HttpResponse HealthAnswer(const absl::StatusOr<v1::GetServerInfoResponse>& info) {
  if (!info.ok()) return ErrorResponse(ApiForm::kOpenAi, 503, "the coordinator cannot be reached");
  if (info->state() == "serving") return {.body = Dump({{"status", "ok"}})};
  std::string why = info->state() == "loading" ? "Loading model" : "the model is not served: " + info->state_reason();
  return ErrorResponse(ApiForm::kOpenAi, 503, why);
}

}  // namespace

void AddHealthRoutes(const RouteParts& parts, Router& router) {
  router.Add("GET", "/health", [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    parts.engine->GetServerInfo(
        [exchange](const absl::StatusOr<v1::GetServerInfoResponse>& info) { exchange->Respond(HealthAnswer(info)); });
    return absl::OkStatus();
  });
}

}  // namespace ferry
