#pragma once

// What a program may want to know of an error beside its code: a reason by name, and when to try again. Kept as payloads of an
// absl::Status; common/rpc/detailed_status.h takes them across gRPC.

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

// `reason`: upper case and underscores.
absl::Status WithReason(absl::Status status, const std::string& reason);
// The reason that WithReason gave, otherwise the one that generate.proto has for the code.
std::string ReasonOf(const absl::Status& status);

absl::Status WithRetry(absl::Status status, absl::Duration delay);
// When a client may try again: what WithRetry gave, a second for RESOURCE_EXHAUSTED, five for UNAVAILABLE, nothing for others.
std::optional<absl::Duration> RetryOf(const absl::Status& status);

}  // namespace ferry
