// /engine: the coordinator's and its workers' state as JSON, for the page's engine room. Bytes, seconds and rates a second;
// counters since the start.

#include "gateway/errors.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

Json CountersOf(const v1::ExpertCounters& experts) {
  return {{"activated", experts.activated()},
          {"resident", experts.resident()},
          {"shipped", experts.shipped()},
          {"on_host", experts.on_host()},
          {"bytes_shipped", experts.bytes_shipped()},
          {"host_bytes_read", experts.host_bytes_read()},
          {"copy_busy_seconds", experts.copy_busy_seconds()},
          {"copy_wait_seconds", experts.copy_wait_seconds()},
          {"host_wait_seconds", experts.host_wait_seconds()},
          {"compute_seconds", experts.compute_seconds()}};
}

Json WorkerOf(const v1::WorkerInfo& worker) {
  return {{"id", worker.worker_id()},
          {"device", worker.device()},
          {"state", worker.state()},
          {"first_layer", worker.first_layer()},
          {"end_layer", worker.end_layer()},
          {"dense_bytes", worker.dense_bytes()},
          {"kv_bytes", worker.kv_bytes()},
          {"slots", worker.expert_slots()},
          {"slot_bytes", worker.expert_slot_bytes()},
          {"link_rate", worker.link_bytes_per_second()},
          {"link_rate_together", worker.link_together_bytes_per_second()},
          {"slot_read_rate", worker.expert_read_bytes_per_second()},
          {"experts", CountersOf(worker.experts())}};
}

Json ModelOf(const v1::GetModelInfoResponse& model) {
  return {{"name", model.name()},
          {"layers", model.num_layers()},
          {"experts", model.num_experts()},
          {"experts_per_token", model.top_k()},
          {"context", model.context_length()},
          {"all_expert_bytes", model.expert_bytes()},
          {"expert_bytes", model.expert_record_bytes()}};
}

Json EngineOf(const v1::GetModelInfoResponse& model, const v1::GetServerInfoResponse& server) {
  Json workers = Json::array();
  for (const v1::WorkerInfo& worker : server.workers()) workers.push_back(WorkerOf(worker));
  return {{"version", server.version()},
          {"state", server.state()},
          {"state_reason", server.state_reason()},
          {"engine", server.engine()},
          {"uptime_seconds", server.uptime_seconds()},
          {"load_seconds", server.load_seconds()},
          {"load_progress", server.load_progress()},
          {"model", ModelOf(model)},
          {"requests",
           {{"running", server.running_requests()}, {"queued", server.queued_requests()}, {"places", server.max_parallel()}}},
          {"tokens", {{"prompt_total", server.prompt_tokens_total()}, {"generated_total", server.generated_tokens_total()}}},
          {"kv", {{"blocks", server.kv_blocks_total()}, {"free", server.kv_blocks_free()}}},
          {"host",
           {{"arena_bytes", server.arena_bytes()},
            {"huge_pages", server.arena_huge_pages()},
            {"resident_bytes", server.resident_bytes()},
            {"read_rate", server.host_read_bytes_per_second()},
            {"expert_read_rate", server.host_experts().read_bytes_per_second()}}},
          {"workers", std::move(workers)}};
}

}  // namespace

void AddEngineRoutes(const RouteParts& parts, Router& router) {
  router.Add("GET", "/engine", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
    const RouteCall call = CallOf(parts, request, exchange);
    call.engine->GetServerInfo([call](const absl::StatusOr<v1::GetServerInfoResponse>& server) {
      if (!server.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, server.status()));
      if (server->pid() == 0) {  // the coordinator tells it to admins alone
        return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, 403, "/engine wants a key of the role admin"));
      }
      call.parts.models->Get(call.engine, [call, server = *server](const absl::StatusOr<Model>& model) {
        if (!model.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
        call.exchange->Respond({.body = Dump(EngineOf((*model)->info, server))});
      });
    });
    return absl::OkStatus();
  });
}

}  // namespace ferry
