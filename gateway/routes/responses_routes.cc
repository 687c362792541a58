// /v1/responses.

#include <utility>

#include "gateway/routes/responses.h"

namespace ferry {

void AddResponsesRoutes(const RouteParts& parts, Router& router) {
  router.Add("POST", "/v1/responses", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
    ASSIGN_OR_RETURN(ResponsesPlan responses, ResponsesPlanOf(body));
    RunChat(CallOf(parts, request, exchange), std::move(responses.plan),
            [echo = std::move(responses.echo)](const Model& model, uint64_t) {
              return NewResponsesWriter(echo, NewIdentity("resp_", model->info.name()));
            });
    return absl::OkStatus();
  });
}

}  // namespace ferry
