#pragma once

// An HTTP gateway that is supervised beside a coordinator and its workers.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/supervisor.h"
#include "common/http_port.h"

namespace ferry {

struct GatewayProcess {
  std::vector<std::string> arguments;  // of ferry-gateway, without the coordinator's address
  bool required =
      false;  // if it cannot run as told, such as on a port that is taken: true ends everything, false goes on without it
};

struct HttpOptions {
  int port = kHttpPort;  // 0: off
  std::string listen = "127.0.0.1";
  std::string chat_template_file;
  std::vector<std::string> origins;
  bool given = false;  // on the command line: a port that is taken ends `serve`
};

// The gateway that `serve` starts; nothing without HTTP. It wants the keys that the API wants, and speaks HTTPS where the API
// speaks TLS. InvalidArgument: an address that is none.
absl::StatusOr<std::optional<GatewayProcess>> GatewayOf(const HttpOptions& http, const ModelOptions& model);

// As Supervisor::Start, with a gateway that is started again whenever it ends.
absl::StatusOr<std::unique_ptr<Supervisor>> StartWithGateway(const ModelOptions& options, const GatewayProcess& gateway);

}  // namespace ferry
