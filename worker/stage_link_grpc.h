#pragma once

// Hidden states to the next worker over gRPC: one PushActivations stream an epoch, opened by the first rows.

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "worker/stage_link.h"

namespace ferry {

// Metadata of PushActivations: which life of the next worker is meant, in decimal. Another answers ABORTED.
inline constexpr char kNextIncarnationKey[] = "ferry-incarnation";

// Connects to the worker at `address`. Unavailable: nobody answers until `deadline`.
absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectGrpcSink(const std::string& address, Incarnation next, int64_t n_embd,
                                                                uint64_t epoch, absl::Time deadline);

}  // namespace ferry
