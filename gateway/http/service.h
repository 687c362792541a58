#pragma once

// What the HTTP side serves: the router, or a test's own.

#include <memory>
#include <optional>
#include <vector>

#include "gateway/http/message.h"

namespace ferry {

class HttpService {
 public:
  virtual ~HttpService() = default;

  // A request whose head has arrived and whose body has not: the answer that refuses it, or nothing when it may go on. Called on
  // the network thread: it must not wait.
  virtual std::optional<HttpResponse> Refuse(const HttpRequest& head) = 0;
  // Headers of every answer to a request, an error too. Called on the network thread.
  virtual std::vector<HttpHeader> AnswerHeaders(const HttpRequest& head) { return {}; }
  // A whole request, on a thread of the service's pool or on the network thread; it must not wait for the engine. The answer goes
  // through `exchange`, now or later.
  virtual void Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) = 0;
  // The answer to a request that the HTTP side refuses: `status` and why, in the form that clients of `path` read. `path` is
  // empty when the head could not be read.
  virtual HttpResponse Error(int status, const std::string& message, const std::string& path) = 0;
};

}  // namespace ferry
