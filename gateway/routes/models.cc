// /v1/models, and what llama-server's clients ask about the server: /props and /slots.

#include "gateway/errors.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

Json ModelEntry(const ServedModel& served) {
  const v1::GetModelInfoResponse& model = served.info;
  return {{"id", model.name()},
          {"object", "model"},
          {"created", 0},
          {"owned_by", "ferry"},
          {"max_model_len", model.context_length()},
          {"meta",
           {{"n_vocab", model.vocab_size()},
            {"n_ctx", model.context_length()},
            {"n_ctx_train", model.model_context_length()},
            {"n_embd", model.n_embd()},
            {"n_layer", model.num_layers()},
            {"n_expert", model.num_experts()},
            {"n_expert_used", model.top_k()},
            {"architecture", model.architecture()}}}};
}

Json PropsOf(const ServedModel& served, const v1::GetServerInfoResponse& server) {
  const v1::GetModelInfoResponse& model = served.info;
  return {{"default_generation_settings", {{"n_ctx", model.context_length()}}},
          {"total_slots", server.max_parallel()},
          {"model_alias", model.name()},
          {"chat_template", served.chat_template},
          {"build_info", "ferry " + server.version()},
          {"modalities", {{"vision", false}, {"audio", false}}},
          {"is_sleeping", false}};
}

// Requests are not bound to slots that a client could name: as many are shown busy as requests run.
Json SlotsOf(const ServedModel& served, const v1::GetServerInfoResponse& server) {
  Json slots = Json::array();
  for (uint32_t i = 0; i < server.max_parallel(); ++i) {
    slots.push_back({{"id", i}, {"n_ctx", served.info.context_length()}, {"is_processing", i < server.running_requests()}});
  }
  return slots;
}

using Render = Json (*)(const ServedModel&, const v1::GetServerInfoResponse&);
void AnswerWithBoth(const RouteParts& parts, const std::shared_ptr<Exchange>& exchange, Render render) {
  parts.models->Get([parts, exchange, render](const absl::StatusOr<Model>& model) {
    if (!model.ok()) return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
    parts.engine->GetServerInfo([exchange, render, model = *model](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
      exchange->Respond(server.ok() ? HttpResponse{.body = Dump(render(*model, *server))}
                                    : ErrorResponse(ApiForm::kOpenAi, server.status()));
    });
  });
}

}  // namespace

void AddModelRoutes(const RouteParts& parts, Router& router) {
  router.Add("GET", "/v1/models", [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    parts.models->Get([exchange](const absl::StatusOr<Model>& model) {
      if (!model.ok()) return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
      exchange->Respond({.body = Dump({{"object", "list"}, {"data", Json::array({ModelEntry(**model)})}})});
    });
    return absl::OkStatus();
  });
  router.Add("GET", "/v1/models/*", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const std::string name = request.path.substr(std::string_view("/v1/models/").size());
    parts.models->Get([exchange, name](const absl::StatusOr<Model>& model) {
      if (!model.ok()) return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
      if ((*model)->info.name() != name) {
        return exchange->Respond(
            ErrorResponse(ApiForm::kOpenAi, 404, "the model served here is " + (*model)->info.name(), "model"));
      }
      exchange->Respond({.body = Dump(ModelEntry(**model))});
    });
    return absl::OkStatus();
  });
  router.Add("GET", "/props", [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    AnswerWithBoth(parts, exchange, PropsOf);
    return absl::OkStatus();
  });
  router.Add("GET", "/slots", [parts](HttpRequest, const std::shared_ptr<Exchange>& exchange) {
    AnswerWithBoth(parts, exchange, SlotsOf);
    return absl::OkStatus();
  });
}

}  // namespace ferry
