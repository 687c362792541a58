// /health: 200 while requests can be served, 503 with the reason otherwise.

#include "gateway/errors.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

absl::StatusOr<v1::GetServerInfoResponse> StateOf(const absl::StatusOr<bool>& serving) {
  if (!serving.ok()) return serving.status();
  v1::GetServerInfoResponse info;
  info.set_state(*serving ? "serving" : "loading");
  return info;
}

HttpResponse HealthAnswer(const absl::StatusOr<v1::GetServerInfoResponse>& info) {
  if (!info.ok()) return ErrorResponse(ApiForm::kOpenAi, 503, "the coordinator cannot be reached");
  if (info->state() == "serving") return {.body = Dump({{"status", "ok"}})};
  std::string why = info->state() == "loading" ? "Loading model" : "the model is not served: " + info->state_reason();
  return ErrorResponse(ApiForm::kOpenAi, 503, why);
}

}  // namespace

void AddHealthRoutes(const RouteParts& parts, Router& router) {
  const auto health = [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    const std::shared_ptr<Engine> engine = parts.coordinator->As("");
    engine->GetServerInfo([exchange, engine](const absl::StatusOr<v1::GetServerInfoResponse>& info) {
      if (!absl::IsUnauthenticated(info.status())) return exchange->Respond(HealthAnswer(info));
      // Without a key, a coordinator with keys tells whether it serves, and nothing else.
      engine->IsServing([exchange](const absl::StatusOr<bool>& serving) { exchange->Respond(HealthAnswer(StateOf(serving))); });
    });
    return absl::OkStatus();
  };
  router.AddOpen("/health", health);
  router.AddOpen("/v1/health", health);  // llama-server has both
}

}  // namespace ferry
