#include "coordinator/generation/activity_service.h"

#include <functional>
#include <utility>

#include "coordinator/raw_message.h"

namespace ferry {

ActivityService::ActivityService(FerryService* ferry, const ExpertMisses* misses, std::vector<int64_t> layers)
    : BoundedService(ferry->parts().reads), ferry_(*ferry), misses_(*misses), layers_(std::move(layers)) {
  AddUnary("/ferry.v1.Activity/GetActivity", std::bind_front(&ActivityService::GetActivity, this));
}

v1::GetActivityResponse ActivityService::Activity() const {
  v1::GetActivityResponse activity;
  for (v1::RunningRequest& request : ferry_.RunningRequests()) {
    if (activity.requests_size() < kMaxShownRequests) {
      *activity.add_requests() = std::move(request);
    } else {
      activity.set_more_requests(activity.more_requests() + 1);
    }
  }
  for (const int64_t layer : layers_) {
    v1::LayerMisses& misses = *activity.add_layers();
    misses.set_layer(static_cast<uint32_t>(layer));
    for (int64_t expert = 0; expert < misses_.num_experts(); ++expert) misses.add_experts(misses_.Of(layer, expert));
  }
  return activity;
}

grpc::ServerUnaryReactor* ActivityService::GetActivity(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                       grpc::ByteBuffer* response) {
  const absl::StatusOr<Principal> caller = ferry_.CallerOf(*context);
  absl::Status status = caller.status();
  if (caller.ok() && caller->role != Role::kAdmin) {
    status = absl::PermissionDeniedError("GetActivity shows everybody's requests: it needs a key of the role admin");
  }
  if (status.ok()) status = Serialize(Activity(), response);
  return Finish(context, status);
}

}  // namespace ferry
