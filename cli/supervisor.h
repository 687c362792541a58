#pragma once

// Starts one coordinator and its workers as child processes and keeps them running. A worker that dies is started again, after a
// pause that grows when it keeps dying. A worker that the coordinator declares lost is killed and started again. Everything ends
// when the coordinator dies, or when a worker's exit code says that another start cannot help (common/exit_codes.h). The kernel
// kills the children when this process dies (PR_SET_PDEATHSIG).

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "cli/model_options.h"
#include "common/status.h"

namespace ferry {

class Supervisor {
 public:
  // Returns as soon as the coordinator listens; callers ask it over the network whether it serves. Starts the binaries beside
  // this one. Errors: a binary is missing, a process cannot be started, or the coordinator ended before it listened (its messages
  // are on stderr).
  static absl::StatusOr<std::unique_ptr<Supervisor>> Start(const ModelOptions& options);
  virtual ~Supervisor() = default;  // kills the remaining children

  virtual const std::string& address() const = 0;  // of the coordinator
  // OK while the coordinator runs; otherwise the reason of its end.
  virtual absl::Status Health() = 0;
  // How long the coordinator has not answered this process; far below a second while all is well.
  virtual absl::Duration Silence() const = 0;
  // Asks the coordinator to drain, then ends everything; at most `grace`. An error, where a trace was asked for: the coordinator
  // did not complete it.
  virtual absl::Status Stop(absl::Duration grace) = 0;
};

}  // namespace ferry
