#pragma once

// A whole gateway: HTTP on one side, the coordinator's gRPC on the other.

#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/status.h"
#include "gateway/http/limits.h"
#include "gateway/routes/router.h"

namespace ferry {

struct GatewayOptions {
  std::string listen = "127.0.0.1:8080";       // HOST:PORT; port 0: any free one
  std::string coordinator = "127.0.0.1:8090";  // its public gRPC, HOST:PORT or unix:PATH; it need not be there yet
  std::string coordinator_ca;                  // PEM, as EngineClient has it
  std::string tls_certificate, tls_key;        // PEM files of HTTPS; empty: HTTP
  std::string chat_template;                   // in place of the model file's, unless it is empty
  std::vector<std::string> origins;            // of pages that may use the routes (CORS)
  HttpLimits limits;
  // Default: everybody who reaches the address.
  Router::AccessCheck access = [](const HttpRequest&) { return absl::OkStatus(); };
};

class Gateway {
 public:
  // Listens from here on. InvalidArgument: the certificate cannot be used. Unavailable: the address is in use or not of this
  // machine.
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(const GatewayOptions& options);
  virtual ~Gateway() = default;  // cancels what runs

  virtual int port() const = 0;
  virtual int num_connections() const = 0;
  // No new requests; returns when those under way are answered or at `deadline`.
  virtual void Drain(Deadline deadline) = 0;
};

}  // namespace ferry
