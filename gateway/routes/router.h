#pragma once

// Which handler answers which request. A client without access learns nothing, not even which routes there are, except from
// routes that were added as open.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "gateway/http/service.h"

namespace ferry {

class Router final : public HttpService {
 public:
  // OK: the request may be made. Unauthenticated or PermissionDenied otherwise. Does not wait.
  using AccessCheck = std::function<absl::Status(const HttpRequest&)>;
  // Answers through the exchange, now or later. InvalidArgument and the like are answered by the router in the form of the path.
  using Handler = std::function<absl::Status(HttpRequest, const std::shared_ptr<Exchange>&)>;

  // `origins`: pages of these origins, as browsers write them ("https://chat.example"), may use the routes; "*": of all.
  explicit Router(AccessCheck access, std::vector<std::string> origins = {})
      : access_(std::move(access)), origins_(std::move(origins)) {}

  // A `path` that ends in '*' matches every longer path that begins so. Before the first request.
  void Add(std::string method, std::string path, Handler handler);
  // The same for GET of exactly this path, which needs no access.
  void AddOpen(std::string path, Handler handler);

  // Also answers the preflight of browsers.
  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  std::vector<HttpHeader> AnswerHeaders(const HttpRequest& head) override;
  void Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override;
  HttpResponse Error(int status, const std::string& message, const std::string& path) override;

 private:
  struct Route {
    std::string method, path;
    Handler handler;
    bool open = false;
    bool Matches(std::string_view path) const;
  };
  const Route* Find(const HttpRequest& request) const;
  bool IsOpen(std::string_view path) const;

  bool AllowsOrigin(std::string_view origin) const;

  const AccessCheck access_;
  const std::vector<std::string> origins_;
  std::vector<Route> routes_;
};

}  // namespace ferry
