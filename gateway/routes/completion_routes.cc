// /v1/completions: asks the engine for the text of ids that are echoed, then runs the generations. /completion, which
// llama-server also calls /completions: runs them.

#include <utility>

#include "gateway/routes/completions.h"
#include "gateway/routes/llama_completions.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

// A request on its way to its generations; each step begins in a callback of the engine.
class CompletionStart : public std::enable_shared_from_this<CompletionStart> {
 public:
  CompletionStart(RouteCall call, CompletionRequest request) : call_(std::move(call)), request_(std::move(request)) {}

  void Start() {
    call_.parts.models->Get(call_.engine, [self = shared_from_this()](const absl::StatusOr<Model>& model) {
      if (!model.ok()) return self->Fail(model.status());
      self->model_ = *model;
      self->EchoNext();
    });
  }

 private:
  void Fail(const absl::Status& status) { call_.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, status)); }

  void EchoNext() {
    while (request_.echo && request_.echoed.size() < request_.prompts.size()) {
      const v1::GenerateRequest& prompt = request_.prompts[request_.echoed.size()];
      if (!prompt.has_text()) return EchoIds(prompt.tokens());
      request_.echoed.push_back(prompt.text());
    }
    RunGenerations(*call_.engine, GenerationsOf(request_),
                   NewCompletionWriter(request_, NewIdentity("cmpl-", model_->info.name()), model_), ApiForm::kOpenAi,
                   *call_.parts.metrics, call_.exchange);
  }
  void EchoIds(const v1::TokenIds& tokens) {
    v1::DetokenizeRequest detokenize;
    *detokenize.mutable_ids() = tokens.ids();
    detokenize.set_render_special(true);
    call_.engine->Detokenize(std::move(detokenize), [self = shared_from_this()](absl::StatusOr<v1::DetokenizeResponse> answer) {
      if (!answer.ok()) return self->Fail(answer.status());
      self->request_.echoed.push_back(std::move(*answer->mutable_text()));
      self->EchoNext();
    });
  }

  const RouteCall call_;
  CompletionRequest request_;
  Model model_;
};

void RunLlamaCompletion(const RouteCall& call, LlamaCompletion completion) {
  call.parts.models->Get(call.engine, [call, completion = std::move(completion)](const absl::StatusOr<Model>& model) {
    if (!model.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
    RunGenerations(*call.engine, GenerationsOf(completion.request), NewLlamaCompletionWriter(completion, *model),
                   ApiForm::kOpenAi, *call.parts.metrics, call.exchange);
  });
}

}  // namespace

void AddCompletionRoutes(const RouteParts& parts, Router& router) {
  for (const char* const path : {"/completion", "/completions"}) {
    router.Add("POST", path, [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
      ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
      ASSIGN_OR_RETURN(LlamaCompletion completion, LlamaCompletionOf(body));
      for (v1::GenerateRequest& prompt : completion.request.prompts) prompt.set_request_id(request.id);
      RunLlamaCompletion(CallOf(parts, request, exchange), std::move(completion));
      return absl::OkStatus();
    });
  }
  router.Add("POST", "/v1/completions", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(const Json body, ParseJsonObject(request.body));
    ASSIGN_OR_RETURN(CompletionRequest completion, CompletionRequestOf(body));
    for (v1::GenerateRequest& prompt : completion.prompts) prompt.set_request_id(request.id);
    std::make_shared<CompletionStart>(CallOf(parts, request, exchange), std::move(completion))->Start();
    return absl::OkStatus();
  });
}

}  // namespace ferry
