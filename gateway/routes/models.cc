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

Json PropsOf(const ServedModel& served, const v1::GetServerInfoResponse& server, bool can_chat) {
  const v1::GetModelInfoResponse& model = served.info;
  return {{"default_generation_settings", {{"n_ctx", model.context_length()}}},
          {"total_slots", server.max_parallel()},
          {"model_alias", model.name()},
          {"chat_template", served.chat_template},
          {"can_chat", can_chat},
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

// Asks the coordinator each time, even when the model is cached, so that an unknown key is refused.
using Render = std::function<HttpResponse(const ServedModel&, const v1::GetServerInfoResponse&)>;
void AnswerWithBoth(const RouteCall& call, Render render) {
  call.engine->GetServerInfo([call, render = std::move(render)](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
    if (!server.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, server.status()));
    call.parts.models->Get(call.engine, [call, render, server = *server](const absl::StatusOr<Model>& model) {
      call.exchange->Respond(model.ok() ? render(**model, server) : ErrorResponse(ApiForm::kOpenAi, model.status()));
    });
  });
}

HttpResponse Models(const ServedModel& served, const v1::GetServerInfoResponse&) {
  return {.body = Dump({{"object", "list"}, {"data", Json::array({ModelEntry(served)})}})};
}
HttpResponse ModelNamed(const std::string& name, const ServedModel& served) {
  if (served.info.name() == name) return {.body = Dump(ModelEntry(served))};
  return ErrorResponse(ApiForm::kOpenAi, 404, "the model served here is " + served.info.name(), "model");
}
HttpResponse Slots(const ServedModel& served, const v1::GetServerInfoResponse& server) {
  return {.body = Dump(SlotsOf(served, server))};
}

}  // namespace

void AddModelRoutes(const RouteParts& parts, Router& router) {
  const auto add = [&](const char* path, Render render) {
    router.Add("GET", path, [parts, render = std::move(render)](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
      AnswerWithBoth(CallOf(parts, request, exchange), render);
      return absl::OkStatus();
    });
  };
  add("/v1/models", Models);
  add("/models", Models);  // llama-server has both
  add("/slots", Slots);
  router.Add("GET", "/props", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const RouteCall call = CallOf(parts, request, exchange);
    call.engine->GetServerInfo([call](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
      if (!server.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, server.status()));
      call.parts.models->Get(call.engine, [call, server = *server](const absl::StatusOr<Model>& model) {
        if (!model.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
        call.parts.chats->Get(call.engine, [call, server, model = *model](const absl::StatusOr<ChatModels::Loaded>& chat) {
          call.exchange->Respond({.body = Dump(PropsOf(*model, server, chat.ok()))});
        });
      });
    });
    return absl::OkStatus();
  });
  router.Add("GET", "/v1/models/*", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const std::string name = request.path.substr(std::string_view("/v1/models/").size());
    AnswerWithBoth(CallOf(parts, request, exchange),
                   [name](const ServedModel& served, const v1::GetServerInfoResponse&) { return ModelNamed(name, served); });
    return absl::OkStatus();
  });
}

}  // namespace ferry
