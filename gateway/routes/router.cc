#include "gateway/routes/router.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "common/log.h"
#include "gateway/errors.h"
#include "gateway/http/request_head.h"

namespace ferry {
namespace {

constexpr size_t kShownPath = 100;  // bytes of a path in a message
constexpr char kPageHeaders[] =
    "authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta, "
    "anthropic-dangerous-direct-browser-access";

// Whether a body of this Content-Type may be JSON. It may without one, and with the one that `curl -d` sends by default.
bool IsJson(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  const bool suffixed = type.size() > 5 && EqualsIgnoringCase(type.substr(type.size() - 5), "+json");
  return type.empty() || suffixed || EqualsIgnoringCase(type, "application/json") ||
         EqualsIgnoringCase(type, "application/x-www-form-urlencoded");
}

// What other servers have at a path that is not there.
std::string NothingAt(const std::string& path) {
  struct Elsewhere {
    std::string_view path;
    const char* why;
  };
  constexpr Elsewhere kElsewhere[] = {
      {"/v1/embeddings", "Ferry generates text and computes no embeddings"},
      {"/embeddings", "Ferry generates text and computes no embeddings"},
      {"/embedding", "Ferry generates text and computes no embeddings"},
      {"/v1/rerank", "Ferry generates text and ranks no documents"},
      {"/rerank", "Ferry generates text and ranks no documents"},
      {"/reranking", "Ferry generates text and ranks no documents"},
      {"/infill", "Ferry does not fill in code: send the model's own markers to /v1/completions"},
      {"/lora-adapters", "Ferry has no LoRA adapters"},
      {"/v1/audio/transcriptions", "Ferry serves text models"},
      {"/v1/images/generations", "Ferry serves text models"},
      {"/api/chat", "this is Ollama's API: Ferry speaks OpenAI's at /v1/chat/completions"},
      {"/api/generate", "this is Ollama's API: Ferry speaks OpenAI's at /v1/completions"},
      {"/api/tags", "this is Ollama's API: Ferry speaks OpenAI's at /v1/models"},
  };
  const std::string nothing = "there is nothing at " + path;
  for (const Elsewhere& elsewhere : kElsewhere) {
    if (elsewhere.path == path) return nothing + ": " + elsewhere.why;
  }
  return nothing;
}

}  // namespace

bool Router::Route::Matches(std::string_view asked) const {
  if (!path.ends_with('*')) return asked == path;
  const std::string_view begin = std::string_view(path).substr(0, path.size() - 1);
  return asked.size() > begin.size() && asked.starts_with(begin);
}

void Router::Add(std::string method, std::string path, Handler handler) {
  routes_.push_back({.method = std::move(method), .path = std::move(path), .handler = std::move(handler)});
}

void Router::AddOpen(std::string path, Handler handler) {
  routes_.push_back({.method = "GET", .path = std::move(path), .handler = std::move(handler), .open = true});
}

bool Router::IsOpen(std::string_view path) const {
  return std::any_of(routes_.begin(), routes_.end(), [&](const Route& route) { return route.open && route.path == path; });
}

const Router::Route* Router::Find(const HttpRequest& request) const {
  for (const Route& route : routes_) {
    if (route.method == request.method && route.Matches(request.path)) return &route;
  }
  return nullptr;
}

bool Router::AllowsOrigin(std::string_view origin) const {
  return !origin.empty() && std::any_of(origins_.begin(), origins_.end(),
                                        [&](const std::string& allowed) { return allowed == "*" || allowed == origin; });
}

// The origin is repeated rather than "*", so that pages may send keys.
std::vector<HttpHeader> Router::AnswerHeaders(const HttpRequest& head) {
  if (origins_.empty()) return {};
  const std::string_view origin = head.Header("origin");
  if (!AllowsOrigin(origin)) return {{"Vary", "Origin"}};
  return {{"Vary", "Origin"},
          {"Access-Control-Allow-Origin", std::string(origin)},
          {"Access-Control-Expose-Headers", "x-request-id, retry-after"}};
}

std::optional<HttpResponse> Router::Refuse(const HttpRequest& head) {
  const ApiForm form = FormOf(head.path);
  const bool preflight = head.method == "OPTIONS" && !head.Header("access-control-request-method").empty();
  if (preflight && AllowsOrigin(head.Header("origin"))) {
    return HttpResponse{.status = 204,
                        .headers = {{"Access-Control-Allow-Methods", "GET, POST"},
                                    {"Access-Control-Allow-Headers", kPageHeaders},
                                    {"Access-Control-Max-Age", "600"}}};
  }
  if (!IsOpen(head.path)) {
    if (const absl::Status allowed = access_(head); !allowed.ok()) return ErrorResponse(form, allowed);
  }
  if (Find(head) != nullptr) {
    if (IsJson(head.Header("content-type"))) return std::nullopt;
    return ErrorResponse(form, 415, "the body is read as JSON: want Content-Type: application/json");
  }
  std::string allowed;
  for (const Route& route : routes_) {
    if (route.Matches(head.path)) allowed += (allowed.empty() ? "" : ", ") + route.method;
  }
  const std::string shown = head.path.substr(0, kShownPath);
  if (allowed.empty()) return ErrorResponse(form, 404, NothingAt(shown));
  HttpResponse response =
      ErrorResponse(form, 405, shown + " is asked with " + allowed + ", not with " + head.method.substr(0, kShownPath));
  response.headers.push_back({"Allow", allowed});
  return response;
}

void Router::Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) {
  const ApiForm form = FormOf(request.path);
  absl::Status status;
  try {
    const Route* const route = Find(request);
    status = route == nullptr ? NotFound("there is nothing at %s", request.path) : route->handler(std::move(request), exchange);
  } catch (const std::exception& error) {  // a library's, such as bad_alloc
    status = Internal("%s", error.what());
  }
  if (!status.ok()) exchange->Respond(ErrorResponse(form, status));
}

HttpResponse Router::Error(int status, const std::string& message, const std::string& path) {
  return ErrorResponse(FormOf(path), status, message);
}

}  // namespace ferry
