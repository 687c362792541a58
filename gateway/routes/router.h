#pragma once

// Which handler answers which request. A client without access learns nothing, not even which routes there are; only /health
// is open.

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

  explicit Router(AccessCheck access) : access_(std::move(access)) {}

  // A `path` that ends in '*' matches every longer path that begins so. Before the first request.
  void Add(std::string method, std::string path, Handler handler);

  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  void Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override;
  HttpResponse Error(int status, const std::string& message, const std::string& path) override;

 private:
  struct Route {
    std::string method, path;
    Handler handler;
    bool Matches(std::string_view path) const;
  };
  const Route* Find(const HttpRequest& request) const;

  const AccessCheck access_;
  std::vector<Route> routes_;
};

}  // namespace ferry
