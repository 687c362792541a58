#pragma once

// The route groups. Each function adds its routes to the router; what its file translates is tested without sockets.

#include "gateway/chat_model.h"
#include "gateway/engine_client.h"
#include "gateway/metrics/gateway_metrics.h"
#include "gateway/model_cache.h"
#include "gateway/routes/router.h"

namespace ferry {

struct RouteParts {  // all borrowed; they outlive every request
  EngineClient* coordinator = nullptr;
  ModelCache* models = nullptr;
  ChatModels* chats = nullptr;
  GatewayMetrics* metrics = nullptr;
};

// One request on its way.
struct RouteCall {
  RouteParts parts;
  std::shared_ptr<Engine> engine;  // the coordinator, which knows the client by its key
  std::shared_ptr<Exchange> exchange;
  std::string request_id;
};
RouteCall CallOf(const RouteParts& parts, const HttpRequest& request, const std::shared_ptr<Exchange>& exchange);

void AddHealthRoutes(const RouteParts& parts, Router& router);      // /health
void AddModelRoutes(const RouteParts& parts, Router& router);       // /v1/models, /props, /slots
void AddTokenRoutes(const RouteParts& parts, Router& router);       // /tokenize, /detokenize
void AddCompletionRoutes(const RouteParts& parts, Router& router);  // /v1/completions, /completion
void AddChatRoutes(const RouteParts& parts, Router& router);        // /v1/chat/completions, /apply-template
void AddMessagesRoutes(const RouteParts& parts, Router& router);    // /v1/messages, /v1/messages/count_tokens
void AddResponsesRoutes(const RouteParts& parts, Router& router);   // /v1/responses
void AddMetricsRoutes(const RouteParts& parts, Router& router);     // /metrics
void AddEngineRoutes(const RouteParts& parts, Router& router);      // /engine
void AddPageRoutes(Router& router);                                 // / and /page/NAME

}  // namespace ferry
