#pragma once

// Translates the expert requests of cluster.proto to those of expert_exchange.h. They come from a peer: counts and sizes are
// checked before they are converted or multiplied.

#include <cstdint>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// InvalidArgument names a field that does not fit its type here. CheckExpertRequest checks the rest.
absl::StatusOr<ExpertRequest> ExpertRequestFromProto(const internal::v1::ExpertRequest& proto, ExpertRequestKind kind);

struct ComputeRequest {
  ExpertRequest request;
  std::vector<float> rows;           // [num_rows, n_embd]
  std::vector<float> contributions;  // [entries, n_embd], to be filled
};
// InvalidArgument names the field: `rows` of another size than num_rows * n_embd, or an answer beyond kMaxAnswerBytes.
absl::StatusOr<ComputeRequest> ComputeRequestFromProto(const internal::v1::ComputeExpertsRequest& proto, int64_t n_embd);
inline constexpr int64_t kMaxAnswerBytes = int64_t{48} << 20;  // of a message's 64 MiB
// The most entries whose answer is that large.
constexpr int64_t MaxEntries(int64_t n_embd) { return kMaxAnswerBytes / static_cast<int64_t>(n_embd * sizeof(float)); }

internal::v1::ExpertPlan ToProto(const std::vector<ExpertPlace>& places);

}  // namespace ferry
