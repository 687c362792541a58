// /v1/models, and what llama-server's clients ask about the server: /props and /slots.

#include <algorithm>

#include "gateway/errors.h"
#include "gateway/routes/llama_completions.h"
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

// Anthropic's clients read models in a form of their own.
bool AsksAnthropic(const HttpRequest& request) { return !request.Header("anthropic-version").empty(); }
Json AnthropicEntry(const ServedModel& served) {
  const std::string& name = served.info.name();
  return {{"type", "model"}, {"id", name}, {"display_name", name}, {"created_at", "1970-01-01T00:00:00Z"}};
}
Json AnthropicModels(const ServedModel& served) {
  const std::string& name = served.info.name();
  return {{"data", Json::array({AnthropicEntry(served)})}, {"has_more", false}, {"first_id", name}, {"last_id", name}};
}

// model_path is a name alone: where the server's files lie is nobody's affair.
Json PropsOf(const ServedModel& served, const v1::GetServerInfoResponse& server, bool can_chat) {
  const v1::GetModelInfoResponse& model = served.info;
  return {{"default_generation_settings",
           {{"id", 0},
            {"n_ctx", model.context_length()},
            {"is_processing", false},
            {"params", SettingsOf(v1::GenerateRequest(), /*stream=*/true)}}},
          {"total_slots", server.max_parallel()},
          {"model_alias", model.name()},
          {"model_path", model.name()},
          {"chat_template", served.chat_template},
          {"bos_token", served.bos},
          {"eos_token", served.eos},
          {"can_chat", can_chat},
          {"build_info", "ferry " + server.version()},
          {"modalities", {{"vision", false}, {"audio", false}}},
          {"endpoint_slots", true},
          {"endpoint_props", false},
          {"endpoint_metrics", true},
          {"is_sleeping", false}};
}

// Requests are not bound to slots that a client could name: as many are shown busy as requests run. `activity` says how far they
// are, to those who may know.
Json SlotsOf(const ServedModel& served, const v1::GetServerInfoResponse& server, const v1::GetActivityResponse& activity) {
  Json slots = Json::array();
  for (uint32_t i = 0; i < server.max_parallel(); ++i) {
    const bool busy = i < server.running_requests();
    Json slot = {{"id", i}, {"n_ctx", served.info.context_length()}, {"is_processing", busy}};
    if (busy && i < static_cast<uint32_t>(activity.requests_size())) {
      const v1::RunningRequest& request = activity.requests(static_cast<int>(i));
      slot["n_prompt_tokens"] = request.prompt_tokens();
      slot["n_prompt_tokens_cache"] = request.cached_tokens();
      slot["n_prompt_tokens_processed"] =
          request.computed_tokens() - std::min(request.computed_tokens(), request.cached_tokens());
      slot["next_token"] = Json::array({{{"n_decoded", request.generated_tokens()}}});
    }
    slots.push_back(std::move(slot));
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
HttpResponse ModelNamed(const std::string& name, bool anthropic, const ServedModel& served) {
  if (served.info.name() == name) return {.body = Dump(anthropic ? AnthropicEntry(served) : ModelEntry(served))};
  return ErrorResponse(ApiForm::kOpenAi, 404, "the model served here is " + served.info.name(), "model");
}
// With `fail_on_no_slot` a balancer learns by the status that a request would wait.
HttpResponse Slots(bool fail_when_busy, const ServedModel& served, const v1::GetServerInfoResponse& server,
                   const v1::GetActivityResponse& activity) {
  if (fail_when_busy && server.running_requests() >= server.max_parallel()) {
    return ErrorResponse(ApiForm::kOpenAi, 503, "no slot is free: a request would wait");
  }
  return {.body = Dump(SlotsOf(served, server, activity))};
}

}  // namespace

void AddModelRoutes(const RouteParts& parts, Router& router) {
  const auto add = [&](const char* path, Render render) {
    router.Add("GET", path, [parts, render = std::move(render)](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
      AnswerWithBoth(CallOf(parts, request, exchange), render);
      return absl::OkStatus();
    });
  };
  add("/models", Models);  // llama-server has both
  router.Add("GET", "/v1/models", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    AnswerWithBoth(CallOf(parts, request, exchange),
                   [anthropic = AsksAnthropic(request)](const ServedModel& served, const v1::GetServerInfoResponse& server) {
                     return anthropic ? HttpResponse{.body = Dump(AnthropicModels(served))} : Models(served, server);
                   });
    return absl::OkStatus();
  });
  router.Add("GET", "/slots", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const bool fail = request.query.find("fail_on_no_slot=1") != std::string::npos;
    const RouteCall call = CallOf(parts, request, exchange);
    call.engine->GetActivity([call, fail](absl::StatusOr<v1::GetActivityResponse> activity) {
      // Keys of the role user may not know; a coordinator of another version may have none.
      v1::GetActivityResponse known = activity.ok() ? *std::move(activity) : v1::GetActivityResponse();
      AnswerWithBoth(call, [fail, known = std::move(known)](const ServedModel& served, const v1::GetServerInfoResponse& server) {
        return Slots(fail, served, server, known);
      });
    });
    return absl::OkStatus();
  });
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
                   [name, anthropic = AsksAnthropic(request)](const ServedModel& served, const v1::GetServerInfoResponse&) {
                     return ModelNamed(name, anthropic, served);
                   });
    return absl::OkStatus();
  });
}

}  // namespace ferry
