#include "gateway/routes/router.h"

#include <exception>
#include <utility>

#include "common/log.h"
#include "gateway/errors.h"

namespace ferry {
namespace {

constexpr char kOpenPath[] = "/health";
constexpr size_t kShownPath = 100;  // bytes of a path in a message

}  // namespace

bool Router::Route::Matches(std::string_view asked) const {
  if (!path.ends_with('*')) return asked == path;
  const std::string_view begin = std::string_view(path).substr(0, path.size() - 1);
  return asked.size() > begin.size() && asked.starts_with(begin);
}

void Router::Add(std::string method, std::string path, Handler handler) {
  routes_.push_back({.method = std::move(method), .path = std::move(path), .handler = std::move(handler)});
}

const Router::Route* Router::Find(const HttpRequest& request) const {
  for (const Route& route : routes_) {
    if (route.method == request.method && route.Matches(request.path)) return &route;
  }
  return nullptr;
}

std::optional<HttpResponse> Router::Refuse(const HttpRequest& head) {
  const ApiForm form = FormOf(head.path);
  if (head.path != kOpenPath) {
    if (const absl::Status allowed = access_(head); !allowed.ok()) return ErrorResponse(form, allowed);
  }
  if (Find(head) != nullptr) return std::nullopt;
  std::string allowed;
  for (const Route& route : routes_) {
    if (route.Matches(head.path)) allowed += (allowed.empty() ? "" : ", ") + route.method;
  }
  const std::string shown = head.path.substr(0, kShownPath);
  if (allowed.empty()) return ErrorResponse(form, 404, "there is nothing at " + shown);
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
