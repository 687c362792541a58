#pragma once

// An HTTP gateway that is supervised beside a coordinator and its workers.

#include <memory>
#include <string>
#include <vector>

#include "cli/supervisor.h"

namespace ferry {

struct GatewayProcess {
  std::vector<std::string> arguments;  // of ferry-gateway, without the coordinator's address
  bool required =
      false;  // if it cannot run as told, such as on a port that is taken: true ends everything, false goes on without it
};

// As Supervisor::Start, with a gateway that is started again whenever it ends.
absl::StatusOr<std::unique_ptr<Supervisor>> StartWithGateway(const ModelOptions& options, const GatewayProcess& gateway);

}  // namespace ferry
