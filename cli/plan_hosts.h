#pragma once

// `ferry plan --hosts`: a cluster that a file describes, before anything is loaded.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/model_options.h"
#include "common/status.h"

namespace ferry {

// Prints where layers and experts would lie, why, the rates that are predicted for prompts of `lengths` and for decode, and what
// to type on each host. Nothing is measured. Errors: those of ReadHosts and of PredictedModel::Open; FailedPrecondition: the
// first host has no memory for the model.
absl::Status PlanHosts(const ModelOptions& options, const std::string& path, const std::vector<int64_t>& lengths, bool json);

}  // namespace ferry
