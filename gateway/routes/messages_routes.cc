// /v1/messages and /v1/messages/count_tokens.

#include <utility>

#include "gateway/routes/completions.h"
#include "gateway/routes/messages.h"

namespace ferry {

void AddMessagesRoutes(const RouteParts& parts, Router& router) {
  router.Add("POST", "/v1/messages", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
    ASSIGN_OR_RETURN(ChatPlan plan, MessagesPlanOf(body, /*count_only=*/false));
    const bool stream = plan.answer.stream;
    RunChat(CallOf(parts, request, exchange), std::move(plan), [stream](const Model& model, uint64_t prompt_tokens) {
      return NewMessagesWriter(stream, RandomId("msg_"), model->info.name(), prompt_tokens);
    });
    return absl::OkStatus();
  });
  router.Add("POST", "/v1/messages/count_tokens",
             [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
               ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
               ASSIGN_OR_RETURN(ChatPlan plan, MessagesPlanOf(body, /*count_only=*/true));
               PrepareChat(CallOf(parts, request, exchange), std::move(plan.chat), ApiForm::kAnthropic,
                           [exchange](const PreparedChat& prepared, const ChatRequest&) {
                             exchange->Respond({.body = Dump({{"input_tokens", prepared.ids.size()}})});
                           });
               return absl::OkStatus();
             });
}

}  // namespace ferry
