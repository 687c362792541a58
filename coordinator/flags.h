#pragma once

// The command line of ferry-coordinator.

#include <CLI/CLI.hpp>
#include <string>

#include "common/status.h"
#include "coordinator/options.h"

namespace ferry {

class CoordinatorFlags {
 public:
  // Adds every flag; this outlives the parse.
  void AddTo(CLI::App& app);
  // The typed options, checked as far as possible without the model. InvalidArgument names the flag.
  absl::StatusOr<CoordinatorOptions> Options() const;

 private:
  void AddAddresses(CLI::App& app);
  void AddPlacement(CLI::App& app);
  void AddEngine(CLI::App& app);
  void AddTimes(CLI::App& app);
  void AddRates(CLI::App& app);

  CoordinatorOptions options_;
  int port_ = -1;  // not given
  double heartbeat_interval_ = 1, heartbeat_timeout_ = 10, step_timeout_ = 120, load_timeout_ = 1800, drain_timeout_ = 30;
  double resume_patience_ = 30;
  std::string resume_ = "on";
  std::string key_type_ = "f16", value_type_ = "f16";
};

}  // namespace ferry
