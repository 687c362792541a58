// /v1/chat/completions, and /apply-template, which says what the model would be given.

#include <utility>

#include "gateway/routes/chat_completions.h"

namespace ferry {

void AddChatRoutes(const RouteParts& parts, Router& router) {
  for (const char* const path : {"/v1/chat/completions", "/chat/completions"}) {  // llama-server has both
    router.Add("POST", path, [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
      ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
      ASSIGN_OR_RETURN(ChatCompletion completion, ChatCompletionOf(body));
      RunChat(CallOf(parts, request, exchange), std::move(completion.plan),
              [shape = completion.shape](const Model& model, uint64_t) {
                return NewChatCompletionWriter(shape, NewIdentity("chatcmpl-", model->info.name()), model);
              });
      return absl::OkStatus();
    });
  }
  router.Add("POST", "/apply-template", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
    const JsonFields fields(body);
    ASSIGN_OR_RETURN(const ToolChoice choice, ToolChoiceOf(fields));
    ASSIGN_OR_RETURN(ChatRequest chat, ChatRequestOf(fields, choice));
    PrepareChat(CallOf(parts, request, exchange), std::move(chat), ApiForm::kOpenAi,
                [exchange](const PreparedChat& prepared, const ChatRequest&) {
                  exchange->Respond({.body = Dump({{"prompt", prepared.prompt.Text()}, {"tokens", prepared.ids}})});
                });
    return absl::OkStatus();
  });
}

}  // namespace ferry
