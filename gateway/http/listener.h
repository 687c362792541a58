#pragma once

// The HTTP/1.1 server: accepts connections and serves each request through an HttpService.
//
// One network thread does all socket work; requests are handled on a small pool, so that the parsing of a large body delays
// nobody's stream. Requests of one connection follow each other: pipelining is refused. Clients that send no whole request cannot
// keep others out: of more than max_connections, the one that has waited longest for a request is closed.

#include <memory>
#include <string>

#include "common/deadline.h"
#include "common/status.h"
#include "gateway/http/limits.h"
#include "gateway/http/service.h"
#include "gateway/http/tls.h"

namespace ferry {

class HttpListener {
 public:
  // Listens on `address`, HOST:PORT, port 0 for any free one; with HTTPS where there is `tls`. `service` outlives the listener,
  // and the listener every Exchange. Unavailable: the address is in use or not of this machine.
  static absl::StatusOr<std::unique_ptr<HttpListener>> Start(const std::string& address, const HttpLimits& limits,
                                                             HttpService* service, std::unique_ptr<HttpTls> tls = nullptr);
  virtual ~HttpListener() = default;  // closes everything; no call to the service follows

  virtual int port() const = 0;
  virtual int num_connections() const = 0;
  // No new connections and no further requests; returns when the answers under way are complete or at `deadline`.
  virtual void Drain(Deadline deadline) = 0;
};

}  // namespace ferry
