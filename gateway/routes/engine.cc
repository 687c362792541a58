// /engine: the coordinator's and its workers' state as JSON, for the page's engine room. Bytes, seconds and rates a second;
// counters since the start.

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
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
          {"experts_in_place", worker.experts_in_place()},
          {"link_rate", worker.link_bytes_per_second()},
          {"link_rate_together", worker.link_together_bytes_per_second()},
          {"slot_read_rate", worker.expert_read_bytes_per_second()},
          {"hidden_states", worker.hidden_states().way()},
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

Json RunningOf(const v1::RunningRequest& request) {
  return {{"id", request.request_id()},
          {"key", request.key()},
          {"prompt", request.prompt_tokens()},
          {"cached", request.cached_tokens()},
          {"computed", request.computed_tokens()},
          {"generated", request.generated_tokens()},
          {"seconds", request.seconds()}};
}

// Two hexadecimal digits an expert: the square root of its misses as a share of the most missed one's, of 255. Counters as they
// are would be ten times as long, and the page asks every second.
std::string HeatOf(const v1::LayerMisses& layer, uint64_t most) {
  std::string heat;
  for (const uint64_t misses : layer.experts()) {
    const double share = most == 0 ? 0 : std::sqrt(static_cast<double>(misses) / static_cast<double>(most));
    absl::StrAppendFormat(&heat, "%02x", static_cast<int>(std::ceil(255 * share)));
  }
  return heat;
}

void AddActivity(const v1::GetActivityResponse& activity, Json* engine) {
  Json running = Json::array(), layers = Json::array();
  for (const v1::RunningRequest& request : activity.requests()) running.push_back(RunningOf(request));
  uint64_t most = 0;
  for (const v1::LayerMisses& layer : activity.layers()) {
    for (const uint64_t misses : layer.experts()) most = std::max(most, misses);
  }
  for (const v1::LayerMisses& layer : activity.layers())
    layers.push_back({{"layer", layer.layer()}, {"heat", HeatOf(layer, most)}});
  (*engine)["activity"] = {{"requests", std::move(running)},
                           {"more_requests", activity.more_requests()},
                           {"most_misses", most},
                           {"misses", std::move(layers)}};
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
        Json engine = EngineOf((*model)->info, server);
        call.engine->GetActivity(
            [call, engine = std::move(engine)](const absl::StatusOr<v1::GetActivityResponse>& activity) mutable {
              // A coordinator of another version may have none.
              if (activity.ok()) AddActivity(*activity, &engine);
              call.exchange->Respond({.body = Dump(engine)});
            });
      });
    });
    return absl::OkStatus();
  });
}

}  // namespace ferry
