#include "common/shm/expert_region.h"

#include "common/model/limits.h"

namespace ferry {

absl::Status CheckExpertRegionShape(const char* region, const ExpertRegionShape& shape) {
  const auto check = [region](const char* name, int64_t value, int64_t last) {
    if (value >= 1 && value <= last) return absl::OkStatus();
    return InvalidArgument("%s %s is %d, want 1 to %d", region, name, value, last);
  };
  RETURN_IF_ERROR(check("n_embd", shape.n_embd, 1 << 20));
  RETURN_IF_ERROR(check("max_rows", shape.max_rows, 1 << 24));
  RETURN_IF_ERROR(check("max_entries", shape.max_entries, 1 << 26));
  return check("max_experts", shape.max_experts, kMaxExperts);
}

}  // namespace ferry
