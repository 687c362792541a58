#pragma once

// activity.proto over gRPC: translates and decides nothing. Callers and bounds are FerryService's.

#include <vector>

#include "coordinator/experts/expert_misses.h"
#include "coordinator/generation/ferry_service.h"
#include "ferry/v1/activity.pb.h"

namespace ferry {

inline constexpr int kMaxShownRequests = 256;

class ActivityService final : public BoundedService {
 public:
  // Both outlive this. `layers`: those that have experts.
  ActivityService(FerryService* ferry, const ExpertMisses* misses, std::vector<int64_t> layers);

  grpc::ServerUnaryReactor* GetActivity(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response);

 private:
  v1::GetActivityResponse Activity() const;

  FerryService& ferry_;
  const ExpertMisses& misses_;
  const std::vector<int64_t> layers_;
};

}  // namespace ferry
